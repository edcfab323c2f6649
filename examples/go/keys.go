package main

import "fmt"

// keys are the names of all keys and channels of one queue, which has them for itself; nothing else here makes one.
// docs/lua.md tells what each of them holds.
type keys struct {
	prefix   string
	topic    string
	database int
}

// name is a key of the queue. The braces are a hash tag: a Redis Cluster keeps all of them together. 0 is the shard.
func (k keys) name(name string) string {
	return fmt.Sprintf("%s:{0:%s}:%s", k.prefix, k.topic, name)
}

// names are several of them.
func (k keys) names(names ...string) []string {
	found := make([]string, len(names))
	for number, name := range names {
		found[number] = k.name(name)
	}
	return found
}

// ofTopic are keys of the jobs.
func (k keys) ofTopic(names ...string) []string {
	found := make([]string, len(names))
	for number, name := range names {
		found[number] = k.name(name + ":" + k.topic)
	}
	return found
}

// waiting are those of waiting jobs, in the order in which every script takes them; leased and dead likewise.
func (k keys) waiting() []string {
	return k.ofTopic("schedule", "jobs", "ties", "steps", "firsts", "graces")
}

func (k keys) leased() []string { return k.ofTopic("attempts", "leases", "tickets", "reserved") }

func (k keys) dead() []string { return k.ofTopic("dead", "letters", "causes") }

// wake is the channel on which a put says so when its job became the earliest.
func (k keys) wake() string { return k.name(fmt.Sprintf("wake:%d", k.database)) }

func join(lists ...[]string) []string {
	var all []string
	for _, list := range lists {
		all = append(all, list...)
	}
	return all
}
