package integration_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// testCrowdsKeepNobodyOut promises an honest client three capsules within seconds, beside a hundred and a thousand uploads of which a
// third says nothing, a third drips and a third lacks its last byte: each on a connection of its own, or as streams of as few
// connections of HTTP/2 as the server allows.
func testCrowdsKeepNobodyOut(t *testing.T) {
	t.Parallel()
	beside := besides{t: t}
	defer beside.Wait()
	for _, n := range []int{100, 1000} {
		for proto, begin := range map[string]func(testing.TB, *chain, int){"h1": crowdOverH1, "h2": crowdOverH2} {
			beside.Run(fmt.Sprintf("%d over %s", n, proto), func(t *testing.T) {
				x := startChain(t, sandbox.Options{AcceptAny: true}, crowdSite, withEnv("MEMORY", "memory 256MiB"))
				begin(t, x, n)
				x.wantTurns(t, 3, 15*time.Second) // without a rule, two minutes: upload_timeout
			})
		}
	}
}

const crowdUpload = 20_000

func crowdOverH1(t testing.TB, x *chain, n int) {
	for i := range n {
		conn, body := x.dialRaw(t), 0
		if i%3 == 2 {
			body = crowdUpload - 1
		}
		conn.send(t, strings.Join(postHead("/verify", crowdUpload), "\r\n")+"\r\n\r\n"+string(make([]byte, body))) // at once: it may be refused soon
		if i%3 == 1 {
			go conn.drip(t, time.Second, crowdUpload, 1)
		}
	}
}

// streamsAtOnce is how many streams Go's server allows on one connection.
const streamsAtOnce = 250

func crowdOverH2(t testing.TB, x *chain, n int) {
	for ; n > 0; n -= streamsAtOnce {
		conn := x.dialRawH2(t)
		var dripping []uint32
		for i := range min(n, streamsAtOnce) {
			id := uint32(2*i + 1)
			conn.sendFields(t, id, false, postFields("/verify", crowdUpload)...)
			switch i % 3 {
			case 1:
				dripping = append(dripping, id)
			case 2:
				// One connection's window is 1 MiB: what a stream alone may leave unread of it.
				check(t, conn.WriteData(id, false, make([]byte, 4000)))
			}
		}
		go conn.dripStreams(t, dripping, time.Second)
	}
}

// dripStreams writes a byte on each of these streams, again and again, until the connection fails or the test ends.
func (c *rawH2) dripStreams(t testing.TB, streams []uint32, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			return
		}
		for _, id := range streams {
			if c.WriteData(id, false, []byte("x")) != nil {
				return
			}
		}
	}
}

// wantTurns fails the test unless so many capsules of an honest client are served in time. A client that is told to come back does so.
func (x *chain) wantTurns(t testing.TB, n int, limit time.Duration) {
	t.Helper()
	c := x.client(t, "h1")
	start := time.Now()
	for served := 0; served < n; {
		a := c.post(t, "/verify", x.anyCapsule())
		switch {
		case a.Status == 200:
			served++
		case time.Since(start) > limit:
			t.Fatalf("after %v %d were served, and the next one got %d %.300s", time.Since(start), served, a.Status, a.Body)
		case a.Status != 503:
			t.Fatalf("got %d %.300s", a.Status, a.Body)
		default:
			time.Sleep(300 * time.Millisecond) // as a client does that is told to come back
		}
	}
}
