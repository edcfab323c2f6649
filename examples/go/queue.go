package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

// ErrLeaseLost says that a job is no longer the caller's. Nothing of it was touched.
var ErrLeaseLost = errors.New("LEASE_LOST")

// ErrExists says that a job of this id waits already.
var ErrExists = errors.New("EXISTS")

// delivery says that jobs go to no list: consumers reserve them. Every client of a queue writes it so.
const delivery = "[[],[],null]"

// endings is how many leases that have run out one reserve ends at most; after so many attempts a job is dead.
const (
	endings     = 250
	maxAttempts = 16
)

// Job is one job under a lease.
type Job struct {
	ID, Body []byte
	Due      time.Time
	Attempts int
	token    string
}

// Queue is the jobs of one topic. Python's celery_delayq.DelayQueue works on the same keys.
type Queue struct {
	topic   string
	keys    keys
	scripts *scripts
}

// NewQueue makes a Queue on a pool of connections to one database; folder is where the Lua files are.
func NewQueue(pool *redis.Pool, database int, topic, folder string) *Queue {
	keys := keys{prefix: "delayq", topic: topic, database: database}
	return &Queue{topic, keys, &scripts{pool: pool, keys: keys, folder: folder, loaded: map[string]*redis.Script{}}}
}

// Put stores a job, due after a delay by Redis's clock.
func (q *Queue) Put(id, body []byte, delay time.Duration) error {
	names := join(q.keys.names("index", "topics", "holds", "beat"), q.keys.waiting(),
		q.keys.names("expiries"), q.keys.leased())
	reply, err := q.scripts.call("put", names,
		q.keys.wake(), "", "error", "new", "", "store", 1, q.topic, delivery, 1, id, after(delay), 0, "", "", body)
	if err != nil {
		return err
	}
	if word, _ := redis.String(reply[0], nil); word == "EXISTS" {
		return fmt.Errorf("%w: a job with the id %s waits already", ErrExists, id)
	}
	return nil
}

// Delete takes back a job that waits or is reserved; false: there is none.
func (q *Queue) Delete(id []byte) (bool, error) {
	names := join(q.keys.names("index", "topics", "holds", "rates", "totals", "aside", "remains"), q.keys.waiting(),
		q.keys.ofTopic("attempts"), q.keys.names("expiries", "ways"), q.keys.leased()[1:], q.keys.dead()[:1])
	gone, err := redis.Ints(q.scripts.call("delete", names, "", q.topic, "", id, ""))
	return err == nil && gone[0] == 1, err
}

// Reserve takes up to limit due jobs for as long as the lease. Jobs of others whose lease is over are due again. Told
// besides is how long it is until there may be more; -1: none waits.
func (q *Queue) Reserve(limit int, lease time.Duration) ([]Job, time.Duration, error) {
	nonce := make([]byte, 20) // that nobody can guess: each token begins with it
	if _, err := rand.Read(nonce); err != nil {
		return nil, 0, err
	}
	names := join(q.keys.names("index", "topics", "holds", "rates", "totals", "aside", "remains", "expiries", "ways"),
		q.keys.waiting(), q.keys.leased())
	reply, err := q.scripts.call("reserve", names,
		"", q.topic, limit, lease.Microseconds(), hex.EncodeToString(nonce), "")
	if err != nil {
		return nil, 0, err
	}
	jobs, err := readJobs(reply[8], reply[9], reply[10])
	if err != nil {
		return nil, 0, err
	}
	expired, left, now, next := reply[2].(int64), reply[3].(int64), reply[4].(int64), reply[5].(int64)
	if expired == 1 {
		ended, err := q.scripts.call("requeue", q.ending(), q.keys.wake(), "", q.topic, endings, 0, maxAttempts)
		if err != nil {
			return jobs, 0, nil // what is reserved must not be lost over it
		}
		left, now, next = left|ended[2].(int64), ended[3].(int64), ended[4].(int64)
	}
	switch {
	case left == 1:
		return jobs, 0, nil
	case next < 0:
		return jobs, -1, nil
	default:
		return jobs, time.Duration(next-now) * time.Microsecond, nil
	}
}

// Ack ends a job that is done.
func (q *Queue) Ack(job Job) error {
	names := join(q.keys.names("totals", "expiries", "ways"), q.keys.leased()[1:], q.keys.dead()[:1])
	lost, err := q.scripts.call("ack", names, q.topic, job.ID, job.token)
	if err == nil && len(lost) > 0 {
		return ErrLeaseLost
	}
	return err
}

// Extend lets the lease end so long from now.
func (q *Queue) Extend(job Job, lease time.Duration) error {
	names := join(q.keys.names("expiries"), q.keys.ofTopic("leases", "tickets"))
	return lostUnless(q.scripts.call("extend", names, "", q.topic, lease.Microseconds(), job.ID, job.token))
}

// Release gives a job back, to wait again. One that was not counted was no attempt.
func (q *Queue) Release(job Job, delay time.Duration, reason string, counted bool) error {
	count := 0
	if counted {
		count = 1
	}
	return lostUnless(q.scripts.call("release", q.ending(),
		q.keys.wake(), "", q.topic, after(delay), maxAttempts, reason, count, job.ID, job.token))
}

// ending are the keys of a script that ends leases.
func (q *Queue) ending() []string {
	return join(q.keys.names("index", "topics", "holds", "totals", "expiries", "ways"),
		q.keys.waiting(), q.keys.leased(), q.keys.dead())
}

// after is a delay as scripts take it: whole microseconds from now on, by Redis's clock.
func after(delay time.Duration) string { return "+" + strconv.FormatInt(delay.Microseconds(), 10) }

func lostUnless(reply []interface{}, err error) error {
	done, err := redis.Ints(reply, err)
	if err == nil && done[0] == 0 {
		return ErrLeaseLost
	}
	return err
}

func readJobs(tickets, names, contents interface{}) ([]Job, error) {
	bodies, err := redis.ByteSlices(contents, nil)
	if err != nil || len(bodies) == 0 {
		return nil, err
	}
	var ids [][]byte
	if joined, ok := names.([]byte); ok { // one text, if no id has a line break in it
		ids = bytes.Split(joined, []byte("\n"))
	} else if ids, err = redis.ByteSlices(names, nil); err != nil {
		return nil, err
	}
	jobs := make([]Job, len(bodies))
	for number, ticket := range strings.Split(string(tickets.([]byte)), "\n") {
		words := strings.Split(ticket, " ") // token, attempts, due and more
		attempts, _ := strconv.Atoi(words[1])
		due, _ := strconv.ParseInt(words[2], 10, 64)
		jobs[number] = Job{ids[number], bodies[number], time.UnixMicro(due), attempts, words[0]}
	}
	return jobs, nil
}
