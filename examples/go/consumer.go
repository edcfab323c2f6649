package main

import (
	"context"
	"errors"
	"log"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

// longestSleep is after how long a consumer looks again, whatever it knows: a wake-up is lost where a connection breaks,
// and a consumer that dies says nothing.
const longestSleep = 5 * time.Second

// Consumer does the jobs of a queue when they are due, some at a time, and keeps them for as long as it works on them.
type Consumer struct {
	Queue    *Queue
	Handle   func(ctx context.Context, job Job) error // ctx ends when the job is no longer this consumer's
	Slots    int                                      // jobs at work at once
	Lease    time.Duration                            // after so long a job is somebody else's if this process dies
	Patience time.Duration                            // how long a stop waits for the jobs at work

	alarm chan struct{} // something may be there to do; holds one ring, so that none is lost
}

// Run works until ctx ends; then it finishes what it has begun, or gives it back.
func (c *Consumer) Run(ctx context.Context) {
	c.alarm = make(chan struct{}, 1)
	go c.listen()
	work, giveBack := context.WithCancel(context.Background())
	defer giveBack()
	slots := make(chan struct{}, c.Slots)
	var held sync.WaitGroup
	for ctx.Err() == nil {
		wait := longestSleep
		if free := c.Slots - len(slots); free > 0 {
			jobs, rest, err := c.Queue.Reserve(free, c.Lease)
			if err != nil {
				log.Printf("cannot take jobs: %v", err)
				rest = time.Second
			}
			for _, job := range jobs {
				slots <- struct{}{}
				held.Add(1)
				go func(job Job) {
					c.do(work, job)
					<-slots
					held.Done()
					c.ring()
				}(job)
			}
			if rest >= 0 && rest < wait {
				wait = rest
			}
		}
		select {
		case <-ctx.Done():
		case <-c.alarm:
		case <-time.After(wait):
		}
	}
	impatience := time.AfterFunc(c.Patience, giveBack)
	held.Wait()
	impatience.Stop()
}

// do does one job and says what became of it. The heartbeat keeps its lease.
func (c *Consumer) do(work context.Context, job Job) {
	ctx, leave := context.WithCancel(work)
	lost := make(chan bool, 1)
	go func() { lost <- !c.keep(ctx, job, leave) }()
	failure := c.Handle(ctx, job)
	leave()
	var err error
	switch {
	case <-lost:
		err = ErrLeaseLost
	case failure == nil:
		err = c.Queue.Ack(job)
		for err != nil && !errors.Is(err, ErrLeaseLost) && work.Err() == nil {
			time.Sleep(time.Second) // Redis is away; a job that is done and not acked will be done again
			err = c.Queue.Ack(job)
		}
	case work.Err() != nil:
		log.Printf("gives back %s", job.ID)
		err = c.Queue.Release(job, 0, "", false)
	default:
		log.Printf("%s failed: %v", job.ID, failure)
		err = c.Queue.Release(job, time.Second, failure.Error(), true)
	}
	if err != nil {
		log.Printf("%v: %s: another may do it, too", err, job.ID)
	}
}

// keep extends the job's lease until ctx ends. False: the lease is lost, and the handler was told to leave the job.
func (c *Consumer) keep(ctx context.Context, job Job, leave func()) bool {
	heartbeat := time.NewTicker(c.Lease / 3)
	defer heartbeat.Stop()
	for {
		select {
		case <-ctx.Done():
			return true
		case <-heartbeat.C:
		}
		if err := c.Queue.Extend(job, c.Lease); errors.Is(err, ErrLeaseLost) {
			leave()
			return false
		} else if err != nil {
			log.Printf("cannot extend the lease of %s: %v", job.ID, err)
		}
	}
}

// listen rings when a put, a move or a release has made its job the earliest one. It ends with the process.
func (c *Consumer) listen() {
	for {
		if connection, err := c.Queue.scripts.pool.Dial(); err == nil {
			ear := redis.PubSubConn{Conn: connection}
			for err = ear.Subscribe(c.Queue.keys.wake()); err == nil; err = connection.Err() {
				ear.Receive() // the first thing is the subscription: what came before it was not heard
				c.ring()
			}
			connection.Close()
		}
		time.Sleep(time.Second)
	}
}

func (c *Consumer) ring() {
	select {
	case c.alarm <- struct{}{}:
	default: // it has rung already
	}
}
