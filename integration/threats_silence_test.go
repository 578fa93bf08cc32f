package integration_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

const (
	dripPause = 400 * time.Millisecond
	dripped   = 3 // bytes within slowUpload
)

// testSilenceAtEachByte promises an end by our deadline to an upload that falls silent, or begins to drip, at whatever byte of its
// body, of its chunks' framing or of its streams' frames; and everything that it held back.
func testSilenceAtEachByte(t *testing.T) {
	t.Parallel()
	const size = 48 // of the capsule
	capsule := strings.Repeat("x", size)
	chunks := fmt.Sprintf("%x;a=b\r\n%s\r\n1\r\ny\r\n0\r\nX-Late: 1\r\n\r\n", size, capsule)
	const slots = 600 // more than all of them take
	x := startChain(t, sandbox.Options{AcceptAny: true}, `
{$SITE} {
	log
	oz_instant /slow {$OZ} {
		upload_timeout 1s
		capacity {
			slots 600
			queue 0
		}
	}
	reverse_proxy {$APP}
}`)
	var all sync.WaitGroup
	uploads := 0
	judge := func(name string, start time.Time, status int, err error) {
		if took := time.Since(start); err != nil || status != 408 || took < slowUpload || took > patience/2 {
			t.Errorf("%s: got %d, %v after %v, want 408 after %v", name, status, err, took, slowUpload)
		}
	}
	run := func(name string, start time.Time, upload func() (int, error)) {
		uploads++
		all.Go(func() {
			status, err := upload()
			judge(name, start, status, err)
		})
	}
	for framing, wire := range map[string]string{"length": capsule, "chunks": chunks} {
		length := size
		if framing == "chunks" {
			length = -1
		}
		for offset := range len(wire) {
			for _, drips := range []bool{false, true} {
				if drips && offset >= len(wire)-dripped {
					continue // then it is whole in time
				}
				conn, start := x.dialRaw(t), time.Now()
				conn.send(t, strings.Join(postHead("/slow", length), "\r\n")+"\r\n\r\n"+wire[:offset]) // at once: else it may be refused by then
				run(fmt.Sprintf("h1 %s, %d, drips %t", framing, offset, drips), start, func() (int, error) {
					if drips {
						conn.dripText(wire[offset : offset+dripped])
					}
					a, err := conn.tryRead("POST")
					return a.Status, err
				})
			}
		}
	}
	for _, length := range []int{size, -1} {
		last := size - 1 // of the bytes that may be there while it isn't whole
		if length < 0 {
			last = size
		}
		h2 := x.dialRawH2(t)
		conn, _ := x.dialH3(t)
		streams, start := map[uint32]string{}, time.Now()
		for offset := range last + 1 {
			id := uint32(2*offset + 1)
			h2.sendFields(t, id, false, postFields("/slow", length)...)
			check(t, h2.WriteData(id, false, []byte(capsule[:offset])))
			streams[id] = fmt.Sprintf("h2 of %d, %d", length, offset)

			h3 := openFrames(t, conn)
			h3.sendFields(t, postFields("/slow", length)...)
			h3.sendFrame(h3Data, []byte(capsule[:offset]))
			run(fmt.Sprintf("h3 of %d, %d", length, offset), start, func() (int, error) {
				a, err := h3.tryRead()
				return a.Status, err
			})
		}
		uploads += len(streams)
		all.Go(func() {
			answers, err := h2.statuses(len(streams))
			for id, name := range streams {
				judge(name, start, answers[id], err)
			}
		})
	}
	if uploads > slots {
		t.Fatalf("%d uploads for %d slots", uploads, slots)
	}
	all.Wait()
	x.assertOnlyCounted(t, refusalsTotal+`{problem="upload-timeout"}`, uploads)
	x.awaitMetric(t, inFlightMetric, 0)
	x.app.None(t)
	x.wantServed(t, "/slow", x.anyCapsule())
}

// dripText writes a text byte by byte, until the connection fails.
func (c *rawConn) dripText(text string) {
	for i := range len(text) {
		time.Sleep(dripPause)
		if _, err := c.Write([]byte{text[i]}); err != nil {
			return
		}
	}
}

// statuses reads frames until there are so many answers, and returns their statuses by stream.
func (c *rawH2) statuses(n int) (map[uint32]int, error) {
	got := map[uint32]int{}
	for len(got) < n {
		frame, err := c.ReadFrame()
		if err != nil {
			return got, err
		}
		var a h2Answer
		if err := c.handle(frame, frame.Header().StreamID, &a); err != nil {
			return got, err
		}
		if _, is := frame.(*http2.MetaHeadersFrame); is {
			got[frame.Header().StreamID] = a.Status
		}
	}
	return got, nil
}
