package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/oz-instant/caddy-oz-instant/caddymodule"
)

// startServer runs a real Redis until the test ends, with options as on its command
// line, and returns its URL.
func startServer(t testing.TB, args ...string) string {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	switch {
	case err != nil && os.Getenv("OZ_ALL_TESTS") != "":
		t.Fatal(err)
	case err != nil:
		t.Skip("redis-server is needed for this test and not there; with OZ_ALL_TESTS set that is a failure")
	}
	for {
		if url := tryServer(t, program, args); url != "" {
			return url
		}
	}
}

// tryServer returns "" if another process was faster to take the port.
func tryServer(t testing.TB, program string, args []string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	l.Close()
	args = append([]string{"--bind", "127.0.0.1", "--port", strconv.Itoa(addr.Port), "--dir", t.TempDir(), "--save", ""}, args...)
	cmd := exec.Command(program, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var log strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "Ready to accept connections") {
			go func() { _, _ = io.Copy(io.Discard, out) }()
			return "redis://" + addr.String()
		}
		log.WriteString(lines.Text() + "\n")
	}
	if !strings.Contains(log.String(), "Address already in use") {
		t.Fatalf("redis-server has ended:\n%s", log.String())
	}
	return ""
}

// newStore loads a store that ends with the test.
func newStore(t testing.TB, url string) *Replay {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	s := &Replay{URL: url}
	if err := s.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Cleanup() })
	return s
}

// lonelyStore opens a store beside which nothing looks at the server, and isn't lost after a second on a machine that stands still.
func lonelyStore(t testing.TB, url string) *Replay {
	t.Helper()
	conn, err := open(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.close() })
	patient(conn)
	return &Replay{conn: conn}
}

// A claim is its owner's until it ends, is released or settled; all of it by
// comparing the owner, also when the server has forgotten the scripts.
func TestClaims(t *testing.T) {
	s := lonelyStore(t, startServer(t))
	ctx := t.Context()
	life := func(key string) time.Duration {
		t.Helper()
		left, err := s.conn.PTTL(ctx, prefix+key).Result()
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
	claim := func(key, owner string, want bool) {
		t.Helper()
		if first, err := s.Claim(ctx, key, owner, time.Minute); first != want || err != nil {
			t.Errorf("%s claims %s: %v %v", owner, key, first, err)
		}
	}
	settle := func(key, owner string, want error) {
		t.Helper()
		if err := s.Settle(ctx, key, owner, time.Hour); !errors.Is(err, want) {
			t.Errorf("%s settles %s: %v", owner, key, err)
		}
	}
	release := func(key, owner string) {
		t.Helper()
		if err := s.Release(ctx, key, owner); err != nil {
			t.Error(err)
		}
	}
	claim("a", "x", true)
	if left := life("a"); left <= 50*time.Second || left > time.Minute {
		t.Errorf("it lives for %v", left)
	}
	claim("a", "y", false)
	release("a", "y")
	claim("a", "y", false)
	claim("a", "x", true) // by a call that is repeated
	release("a", "x")
	claim("a", "y", true)
	settle("a", "x", caddymodule.ErrClaimed)
	if left := life("a"); left > time.Minute {
		t.Errorf("another one has made it live for %v", left)
	}
	settle("a", "y", nil)
	claim("a", "y", true) // a late repetition
	if left := life("a"); left <= 50*time.Minute || left > time.Hour {
		t.Errorf("it lives for %v", left)
	}
	if err := s.conn.ScriptFlush(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	settle("b", "x", nil) // made anew
	claim("b", "y", false)
	if err := s.conn.ScriptFlush(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	release("b", "x")
	claim("b", "y", true)
	if first, err := s.Claim(ctx, "c", "x", 50*time.Millisecond); !first || err != nil {
		t.Error(first, err)
	}
	for life("c") > 0 {
		time.Sleep(10 * time.Millisecond)
	}
	claim("c", "y", true)
	settle("c", "x", caddymodule.ErrClaimed)
}

// commands counts what a client sends.
type commands struct{ atomic.Int64 }

func (*commands) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *commands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.Add(1)
		return next(ctx, cmd)
	}
}

func (*commands) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A claim is one command, so that no release comes between its parts and leaves
// a free key refused.
func TestClaimIsOneCommand(t *testing.T) {
	s := lonelyStore(t, startServer(t))
	if _, err := s.Claim(t.Context(), "first", "x", time.Minute); err != nil { // it may bring the script
		t.Fatal(err)
	}
	var sent commands
	s.conn.AddHook(&sent)
	for i, owner := range []string{"x", "y", "x"} {
		before := sent.Load()
		if first, err := s.Claim(t.Context(), "key", owner, time.Minute); first != (owner == "x") || err != nil {
			t.Errorf("claim %d: %v %v", i, first, err)
		}
		if n := sent.Load() - before; n != 1 {
			t.Errorf("claim %d took %d commands", i, n)
		}
	}
}

// A call ends with its context, whatever the server does.
func TestCallsEnd(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() }) // it accepts, in the kernel, and never answers
	for _, url := range []string{
		"redis://" + silent.Addr().String(), "rediss://" + silent.Addr().String(),
		"redis+sentinel://" + silent.Addr().String() + "/claims", "redis+cluster://" + silent.Addr().String(),
	} {
		t.Run(url[:14], func(t *testing.T) {
			t.Parallel()
			s := newStore(t, url)
			took := time.Hour
			for tries := 0; took > 900*time.Millisecond && tries < 5; tries++ { // the machine may be slow, but not each time
				took = callsEnd(t, s)
			}
			if took > 900*time.Millisecond { // the client's own times are a second
				t.Errorf("it took %v", took)
			}
		})
	}
}

// callsEnd makes calls that nobody answers, for 300 ms, and returns how long they took.
func callsEnd(t *testing.T, s *Replay) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if first, err := s.Claim(ctx, "key", "owner", time.Minute); first || err == nil {
		t.Errorf("%v %v", first, err)
	}
	if err := s.Settle(ctx, "key", "owner", time.Minute); err == nil || errors.Is(err, caddymodule.ErrClaimed) {
		t.Error(err)
	}
	if err := s.Release(ctx, "key", "owner"); err == nil {
		t.Error("released")
	}
	return time.Since(start)
}

// What capsules would be refused for is told when the store is loaded, and the
// rights that are documented are enough for it to be silent.
func TestLook(t *testing.T) {
	const rights = "+set +get +del +eval +evalsha ~oz_instant:replay:*"
	for name, test := range map[string]struct {
		args   []string
		rights string
		want   string // a part of the warning
	}{
		"the rights":       {nil, rights, ""},
		"no set":           {nil, strings.Replace(rights, "+set ", "", 1), "NOPERM"},
		"no get":           {nil, strings.Replace(rights, "+get ", "", 1), "NOPERM"},
		"no del":           {nil, strings.Replace(rights, "+del ", "", 1), "NOPERM"},
		"no eval":          {nil, strings.Replace(rights, "+eval ", "", 1), "NOPERM"},
		"no evalsha":       {nil, strings.Replace(rights, "+evalsha ", "", 1), "NOPERM"},
		"other keys":       {nil, strings.Replace(rights, "oz_instant", "other", 1), "NOPERM"},
		"only get":         {nil, "+get ~*", "NOPERM"},
		"a replica":        {[]string{"--replicaof", "127.0.0.1 1"}, rights, "READONLY"},
		"without a master": {[]string{"--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", "no"}, rights, "MASTERDOWN"},
		"full":             {[]string{"--maxmemory", "1"}, rights, "OOM"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			account := append([]string{"--user", "oz", "on", ">s3cret", "-@all"}, strings.Fields(test.rights)...)
			addr := strings.TrimPrefix(startServer(t, append(account, test.args...)...), "redis://")
			conn, err := open("redis://oz:s3cret@" + addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.close() })
			loadScripts(t, addr) // another gateway may have brought them
			core, logs := observer.New(zap.DebugLevel)
			said := "timeout"
			for tries := 0; tries < 5 && (strings.Contains(said, "timeout") || strings.Contains(said, "deadline exceeded")); tries++ {
				logs.TakeAll() // a call has a second, which a busy machine may use up
				(&Replay{conn: conn}).look(t.Context(), zap.New(core))
				said = fmt.Sprint(logs.All())
			}
			switch {
			case test.want == "" && logs.Len() > 0:
				t.Errorf("logged: %s", said)
			case test.want != "" && (logs.Len() != 1 || logs.All()[0].Level != zap.WarnLevel || !strings.Contains(said, test.want)):
				t.Errorf("logged: %s, want a warning of %s", said, test.want)
			}
			if strings.Contains(said, "s3cret") || strings.Contains(said, prefix) && !strings.Contains(said, prefix+"*") {
				t.Errorf("it tells too much: %s", said)
			}
			free := redis.NewClient(&redis.Options{Addr: addr})
			defer free.Close()
			keys, err := free.Keys(t.Context(), "*").Result()
			for _, key := range keys {
				if left := free.PTTL(t.Context(), key).Val(); left <= 0 || left > 10*time.Second {
					t.Errorf("%s stays for %v", key, left)
				}
			}
			if err == nil && test.want == "" && len(keys) > 0 {
				t.Errorf("left %q", keys)
			}
		})
	}
}

func loadScripts(t *testing.T, addr string) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	defer c.Close()
	for _, script := range []*redis.Script{claimScript, settleScript, releaseScript} {
		if err := script.Load(t.Context(), c).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// A store's arguments and options are not quoted, since any of them can be the
// URL.
func TestCaddyfileQuotesNothing(t *testing.T) {
	for text, want := range map[string]string{
		"redis":                                     "redis needs a URL",
		"redis redis://:secret@h more":              "redis needs a URL",
		"redis more redis://:secret@h":              "redis needs a URL",
		"redis secret":                              "invalid URL",
		"redis redis://:secret@h:x":                 "invalid URL",
		"redis {\nredis://:secret@h\n}":             "redis needs a URL",
		"redis redis://h {\nredis://:secret@h 1\n}": "redis has no options of its own",
		"redis redis://h {\nentries secret\n}":      "redis has no options of its own",
	} {
		err := new(Replay).UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
