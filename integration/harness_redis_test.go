package integration_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisServer is a real Redis, or a Sentinel, on loopback.
type redisServer struct {
	Addr string
	Port int

	program, ready string
	args           []string
	dir            string
	cmd            *exec.Cmd
	logs           *logBook
	ended          chan struct{}
}

// startRedis runs a Redis until the test ends, with its options as on the command line.
func startRedis(t testing.TB, args ...string) *redisServer {
	t.Helper()
	r := newRedis(t, "redis-server", "Ready to accept connections")
	r.args = append([]string{"--bind", "127.0.0.1", "--port", strconv.Itoa(r.Port), "--dir", r.dir, "--save", "",
		"--appendfsync", "always", "--notify-keyspace-events", "KEA"}, args...)
	r.start(t)
	return r
}

// startCluster runs a cluster of one Redis, with the account that another one takes on its command line. Its default user
// stays: it is what makes the cluster.
func startCluster(t testing.TB, account []string) *redisServer {
	t.Helper()
	r := startRedis(t, "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(freePort(t)))
	r.do(t, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
	r.await(t, "Cluster state changed: ok")
	rights := account[len([]string{"--user", "oz", "on"}) : len(account)-len([]string{"--user", "default", "off"})]
	for _, right := range rights {
		r.do(t, "ACL", "SETUSER", "oz", "on", right)
	}
	return r
}

// startSentinel runs a Sentinel that watches a primary by the name "claims", and needs no other one to agree. It takes nothing for down
// until failsOver: a primary that gets no CPU for a moment still is the primary.
func startSentinel(t testing.TB, primary *redisServer) *redisServer {
	t.Helper()
	r := newRedis(t, "redis-sentinel", "+monitor")
	config := filepath.Join(r.dir, "sentinel.conf")
	check(t, os.WriteFile(config, []byte("bind 127.0.0.1\nport "+strconv.Itoa(r.Port)+"\ndir "+r.dir+
		"\nsentinel monitor claims 127.0.0.1 "+strconv.Itoa(primary.Port)+" 1"+
		"\nsentinel down-after-milliseconds claims 600000\nsentinel failover-timeout claims 2000\n"), 0o600))
	r.args = []string{config}
	r.start(t)
	return r
}

// failsOver has a Sentinel take over from a primary that is dead, and returns when it has. A Sentinel that stood still for two seconds does
// nothing for the next thirty (TILT).
func (r *redisServer) failsOver(t testing.TB) {
	t.Helper()
	r.do(t, "SENTINEL", "SET", "claims", "down-after-milliseconds", 300)
	if len(r.logs.wait(3*patience, 1, r.ended, having("+switch-master"))) == 0 {
		t.Fatalf("no replica took over:\n%s", r.logs)
	}
}

func newRedis(t testing.TB, name, ready string) *redisServer {
	t.Helper()
	port := freePort(t)
	r := &redisServer{Addr: loopback(port), Port: port, program: program(t, name), ready: ready, dir: t.TempDir()}
	t.Cleanup(func() { r.kill() })
	return r
}

// start runs it, the first time or again.
func (r *redisServer) start(t testing.TB) {
	t.Helper()
	r.cmd, r.logs, r.ended = exec.Command(r.program, r.args...), newLogBook(), make(chan struct{})
	r.cmd.Stdout, r.cmd.Stderr = r.logs, r.logs
	dieWithTests(r.cmd, syscall.SIGKILL)
	check(t, r.cmd.Start())
	ended := r.ended
	go func() {
		r.cmd.Wait()
		close(ended)
	}()
	r.await(t, r.ready)
}

// await returns when it has logged a text. A Sentinel whose machine stood still for two seconds does nothing for half a minute.
func (r *redisServer) await(t testing.TB, text string) {
	t.Helper()
	if len(r.logs.wait(startPatience, 1, r.ended, having(text))) == 0 {
		t.Fatalf("%s did not say %q:\n%s", r.program, text, r.logs)
	}
}

// kill ends it at once.
func (r *redisServer) kill() {
	if r.cmd == nil || r.cmd.Process == nil {
		return
	}
	r.cmd.Process.Kill()
	<-r.ended
}

// hang stops it without closing a connection: it accepts, and does not answer.
func (r *redisServer) hang(t testing.TB) { r.signal(t, syscall.SIGSTOP) }

// wake lets it continue.
func (r *redisServer) wake(t testing.TB) { r.signal(t, syscall.SIGCONT) }

func (r *redisServer) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	check(t, r.cmd.Process.Signal(s))
}

// client speaks with it.
func (r *redisServer) client(t testing.TB) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{
		Addr: r.Addr, DisableIdentity: true, MaxRetries: -1, DialTimeout: patience, ReadTimeout: patience, WriteTimeout: patience,
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// do runs a command.
func (r *redisServer) do(t testing.TB, args ...any) any {
	t.Helper()
	answer, err := r.client(t).Do(t.Context(), args...).Result()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return answer
}

// keys are all that there are.
func (r *redisServer) keys(t testing.TB) []string {
	t.Helper()
	keys, err := r.client(t).Keys(t.Context(), "*").Result()
	check(t, err)
	return keys
}

// claims are the keys of capsules. A gateway that starts has one of its own for a moment, to see whether it may.
func (r *redisServer) claims(t testing.TB) []string {
	t.Helper()
	return slices.DeleteFunc(r.keys(t), func(key string) bool { return strings.Contains(key, ":look:") })
}

// replicated returns when a replica has all that was written so far.
func (r *redisServer) replicated(t testing.TB) {
	t.Helper()
	conn := r.client(t).Conn()
	defer conn.Close()
	check(t, conn.Do(t.Context(), "SET", "written", "last").Err()) // WAIT waits for what its own connection has written
	if n, err := conn.Do(t.Context(), "WAIT", 1, patience.Milliseconds()/2).Int(); n != 1 || err != nil {
		t.Fatalf("%d replicas have it all, %v", n, err)
	}
}

// life returns how long a key lives from now on.
func (r *redisServer) life(t testing.TB, key string) time.Duration {
	t.Helper()
	left, err := r.client(t).PTTL(t.Context(), key).Result()
	check(t, err)
	return left
}

// awaitEmpty returns when it has no key any more, at the latest after limit.
func (r *redisServer) awaitEmpty(t testing.TB, limit time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c := r.client(t)
	events := c.PSubscribe(ctx, "__keyevent@*__:*")
	defer events.Close()
	_, err := events.Receive(ctx) // the subscription
	check(t, err)
	for {
		keys, err := c.Keys(ctx, "*").Result()
		switch {
		case ctx.Err() != nil: // maybe in a machine's sleep, after which they are gone
			if keys := r.keys(t); len(keys) > 0 {
				t.Fatalf("after %v there still are %q", limit, keys)
			}
			return
		case err == nil && len(keys) == 0:
			return
		}
		select {
		case <-events.Channel():
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond): // an expired key makes its event when somebody looks
		}
	}
}
