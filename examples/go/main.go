// Jobs with a due time from Go: put, cancel and consume them.
package main

import (
	"context"
	"fmt"
	"log"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gomodule/redigo/redis"
)

const usage = `usage: delayq put <topic> <id> <seconds from now> <body>
       delayq cancel <topic> <id>
       delayq consume <topic> [seconds of work] [lease] [patience when it is stopped]
`

func main() {
	log.SetFlags(0)
	arguments := os.Args[1:]
	if len(arguments) < 2 {
		fail(usage)
	}
	verb, topic, rest := arguments[0], arguments[1], arguments[2:]
	if topic == "" || strings.ContainsAny(topic, "{}") {
		fail("a topic needs a name without braces\n")
	}
	queue := NewQueue(connect(topic))
	switch {
	case verb == "put" && len(rest) == 3:
		check(queue.Put([]byte(rest[0]), []byte(rest[2]), seconds(rest[1])))
		fmt.Printf("%s is due in %s s\n", rest[0], rest[1])
	case verb == "cancel" && len(rest) == 1:
		gone, err := queue.Delete([]byte(rest[0]))
		check(err)
		if gone {
			fmt.Printf("%s is cancelled\n", rest[0])
		} else {
			fmt.Printf("there is no %s\n", rest[0])
		}
	case verb == "consume" && len(rest) <= 3:
		words := append(rest, []string{"1", "30", "10"}[len(rest):]...)
		consume(queue, seconds(words[0]), seconds(words[1]), seconds(words[2]))
	default:
		fail(usage)
	}
}

// consume does jobs until Ctrl-C or SIGTERM. To do one takes some time here, and says so.
func consume(queue *Queue, work, lease, patience time.Duration) {
	handle := func(ctx context.Context, job Job) error {
		fmt.Printf("%s: begins, attempt %d, %d ms after its due time\n",
			job.ID, job.Attempts, time.Since(job.Due).Milliseconds())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(work):
			fmt.Printf("%s: %s\n", job.ID, job.Body)
			return nil
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fmt.Printf("consuming %s\n", queue.topic)
	(&Consumer{Queue: queue, Handle: handle, Slots: 4, Lease: lease, Patience: patience}).Run(ctx)
	fmt.Println("stopped")
}

// connect reads the environment: REDIS_URL, and DELAYQ_LUA where the Lua files are not those of the checkout.
func connect(topic string) (*redis.Pool, int, string, string) {
	address := os.Getenv("REDIS_URL")
	if address == "" {
		address = "redis://localhost:6379/0"
	}
	parsed, err := url.Parse(address)
	check(err)
	database, _ := strconv.Atoi(strings.Trim(parsed.Path, "/"))
	folder := os.Getenv("DELAYQ_LUA")
	if folder == "" {
		folder = filepath.Join("..", "..", "lua")
	}
	pool := &redis.Pool{MaxIdle: 4, Dial: func() (redis.Conn, error) { return redis.DialURL(address) }}
	return pool, database, topic, folder
}

func seconds(text string) time.Duration {
	number, err := strconv.ParseFloat(text, 64)
	check(err)
	return time.Duration(number * float64(time.Second))
}

func check(err error) {
	if err != nil {
		fail(err.Error() + "\n")
	}
}

func fail(text string) {
	fmt.Fprint(os.Stderr, text)
	os.Exit(1)
}
