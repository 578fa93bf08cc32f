package redis

import (
	"bufio"
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
)

// slowServer answers each command as Redis answers the first claim of a key, after a while. Of greetings it
// knows none, as Redis 5.
func slowServer(conn net.Conn, takes time.Duration) {
	defer conn.Close()
	for lines := bufio.NewReader(conn); ; {
		words, err := readWords(lines)
		if err != nil {
			return
		}
		answer := "-ERR unknown command\r\n"
		if words[0] != "hello" {
			time.Sleep(takes)
			answer = ":1\r\n"
		}
		if _, err := io.WriteString(conn, answer); err != nil {
			return
		}
	}
}

// readWords reads a command: how many words it has, and for each its length and itself.
func readWords(lines *bufio.Reader) (words []string, err error) {
	line := func() string {
		text, e := lines.ReadString('\n')
		if e != nil {
			err = e
		}
		return strings.TrimSpace(text)
	}
	n, _ := strconv.Atoi(strings.TrimPrefix(line(), "*"))
	for range n {
		line()
		words = append(words, line())
	}
	return words, err
}

// On a busy machine Redis's answers take their time, and there are as many calls as before: the 333 a second that
// 10,000 capsules a minute need don't wait for each other until they fail.
func TestCallsDontWaitForConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := redis.NewUniversalClient(bounded(&redis.UniversalOptions{
			Addrs: []string{"redis.internal:6379"},
			Dialer: func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				go slowServer(server, 200*time.Millisecond)
				return client, nil
			},
		}))
		store := &Replay{conn: &connection{UniversalClient: client}}
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
				defer cancel()
				if first, err := store.Claim(ctx, "key", "owner", time.Minute); !first || err != nil {
					t.Errorf("a claim: %t, %v", first, err)
				}
			})
			time.Sleep(3 * time.Millisecond)
		}
		all.Wait()
		client.Close()
		time.Sleep(time.Second) // until all have ended
	})
}
