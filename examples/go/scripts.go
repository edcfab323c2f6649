package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/gomodule/redigo/redis"
)

// version is that of the keys and scripts that this client was written for.
const version = 1

// scripts are the project's Lua files. They are sent by their hash; whole only to a Redis that does not know them, which
// redigo's Script sees to.
type scripts struct {
	pool   *redis.Pool
	keys   keys
	folder string

	mutex   sync.Mutex
	loaded  map[string]*redis.Script
	checked bool
}

// call runs the script of that name. The version of the key space is checked before the first call.
func (s *scripts) call(name string, keys []string, args ...interface{}) ([]interface{}, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	return s.run(name, keys, args...)
}

func (s *scripts) check() error {
	s.mutex.Lock()
	checked := s.checked
	s.mutex.Unlock()
	if checked {
		return nil
	}
	reply, err := s.run("version", s.keys.names("version"), version, "mark")
	if err != nil {
		return err
	}
	if word, _ := redis.String(reply[0], nil); word != "OK" {
		return fmt.Errorf("the keys %s* have version %v, this client knows %d: take a newer one",
			s.keys.name(""), reply[1], version)
	}
	s.mutex.Lock()
	s.checked = true
	s.mutex.Unlock()
	return nil
}

func (s *scripts) run(name string, keys []string, args ...interface{}) ([]interface{}, error) {
	script, err := s.load(name)
	if err != nil {
		return nil, err
	}
	connection := s.pool.Get()
	defer connection.Close()
	words := redis.Args{len(keys)}.AddFlat(keys).Add(args...)
	return redis.Values(script.Do(connection, words...))
}

func (s *scripts) load(name string) (*redis.Script, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if script, ok := s.loaded[name]; ok {
		return script, nil
	}
	text, err := os.ReadFile(filepath.Join(s.folder, name+".lua"))
	if err != nil {
		return nil, err
	}
	s.loaded[name] = redis.NewScript(-1, string(text))
	return s.loaded[name], nil
}
