package integration_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// TestLeaveDuringAnalysis promises that a capsule that is whole is analysed with client_gone finish, which is the default, although
// nobody waits any more: the app gets the decision, once. The analysis is paid for and its token spent.
func TestLeaveDuringAnalysis(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, leaveSite)
	for name, begin := range leavers {
		t.Run(name, func(t *testing.T) {
			j := x.leaveDuringAnalysis(t, "/finish", begin, func() {})
			if !j.decided[0].Get("client_gone").Bool() {
				t.Errorf("the log does not say that the client had left: %s", j.decided[0])
			}
			assertFolder(t, x.app.Only(t))
			x.assertIdle(t)
		})
	}
}

// TestLeaveDuringAnalysisCancels promises the opposite with client_gone cancel: then everything ends at once.
func TestLeaveDuringAnalysisCancels(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, leaveSite)
	x.oz.fault(t, "hang")
	for name, begin := range leavers {
		t.Run(name, func(t *testing.T) {
			x.leaveAfter(t, "/cancel", func(path string) leaver {
				client := begin(t, x.caddyProc, path, 40_000)
				send := client.send
				client.send = func(data []byte) {
					send(data)
					client.end()
				}
				return client
			}, make([]byte, 40_000))
		})
	}
}

// workingApp is an app that takes its time: it has begun when a value comes out of began, and answers when one goes into finish
// unless the gateway takes its request back.
type workingApp struct {
	Addr          string
	began, finish chan bool
	ended         chan error // why it did not answer
}

func newWorkingApp(t testing.TB) *workingApp {
	t.Helper()
	a := &workingApp{began: make(chan bool, 1), finish: make(chan bool), ended: make(chan error, 1)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // else Go's server would not notice
		a.began <- true
		select {
		case <-r.Context().Done():
			a.ended <- r.Context().Err()
		case <-a.finish:
			a.ended <- nil
		}
	}))
	t.Cleanup(server.Close)
	a.Addr = server.Listener.Addr().String()
	return a
}

// TestLeaveWhileTheAppWorks promises that with client_gone finish the app may finish what it does with a decision, although the
// client left meanwhile, and that with cancel its request ends, as in any Caddy.
func TestLeaveWhileTheAppWorks(t *testing.T) {
	t.Parallel()
	oz, app := startSandbox(t, sandbox.Options{}), newWorkingApp(t)
	x := &chain{startCaddy(t, leaveSite, withEnv("OZ", oz.URL), withEnv("APP", app.Addr)), oz, nil}
	for name, begin := range leavers {
		for _, path := range []string{"/finish", "/cancel"} {
			t.Run(name+path, func(t *testing.T) {
				capsule := x.capsuleOf(t, "s")
				client := begin(t, x.caddyProc, path, len(capsule))
				client.send(capsule)
				client.end()
				<-app.began
				client.leave()
				if path == "/finish" {
					x.afterNoticing(t, func() { app.finish <- true })
				}
				if err := <-app.ended; (err != nil) != (path == "/cancel") {
					t.Errorf("the app's request ended with %v", err)
				}
			})
		}
	}
}

// TestLeaveHalfway is about a client that has nothing more to say and still listens: it shuts down its side of the connection.
// To net/http that is a client that left. With client_gone finish the answer is written all the same, and it gets it; with
// cancel, or before the capsule is whole, there is none to get.
func TestLeaveHalfway(t *testing.T) {
	t.Parallel()
	x := startChain(t, sandbox.Options{}, leaveSite)
	begin := func(t *testing.T, path string, size int, part []byte) *rawConn {
		conn := x.dialRaw(t)
		conn.sendHead(t, postHead(path, size)...)
		conn.send(t, string(part))
		x.beforeLeaving(t, len(part))
		check(t, conn.Conn.(*net.TCPConn).CloseWrite())
		return conn
	}
	t.Run("finish", func(t *testing.T) {
		x.oz.Forget()
		release := x.oz.HoldAnalyses()
		j := x.observe(t, func() answer {
			capsule := x.capsuleOf(t, "s")
			conn := begin(t, "/finish", len(capsule), capsule)
			x.afterNoticing(t, release)
			a := conn.read(t, "POST")
			conn.ends(t)
			return a
		})
		accepted.assert(t, j, "s")
	})
	for _, path := range []string{"/cancel", "/finish"} {
		t.Run("before Oz has heard of it, "+path, func(t *testing.T) {
			x.leaveHalfway(t, func() *rawConn { return begin(t, path, 10_000, make([]byte, 5_000)) })
			x.assertNoWholeCapsule(t, 0)
		})
		t.Run("in the middle of the upload, "+path, func(t *testing.T) {
			x.leaveHalfway(t, func() *rawConn { return begin(t, path, 80_000, make([]byte, 40_000)) })
		})
	}
	t.Run("cancel", func(t *testing.T) {
		x.oz.fault(t, "hang")
		x.leaveHalfway(t, func() *rawConn {
			capsule := x.capsuleOf(t, "s")
			return begin(t, "/cancel", len(capsule), capsule)
		})
	})
}

// leaveHalfway fails the test unless the client gets nothing for what it did not wait for.
func (x *chain) leaveHalfway(t *testing.T, begin func() *rawConn) {
	t.Helper()
	x.leave(t, func() time.Time {
		conn := begin()
		left := time.Now()
		if a, err := conn.tryRead("POST"); err == nil && (a.Status != 499 || len(a.Body) > 0) {
			t.Errorf("got %d %s", a.Status, a.Body)
		}
		return left
	})
}
