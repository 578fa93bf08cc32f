package integration_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/oz-instant/caddy-oz-instant/integration/sandbox"
)

// mostLines is how many lines a capsule's header may have.
const mostLines = 80

// testFloodHidesNothing promises that with any number of header lines, before and after ours in the order in which Caddy writes them,
// the app gets all of ours or no request at all: an app server that reads the first thousand would miss the decision.
func testFloodHidesNothing(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]string{"": "", " where Caddy takes more": "{\n\tservers {\n\t\tmax_header_size 1MB\n\t}\n}\n"} {
		x := startChain(t, sandbox.Options{}, options+smokeSite)
		senders := map[string]func(testing.TB, []byte, []string) int{"h1": x.floodOverH1, "h2": x.floodOverH2, "h3": x.floodOverH3}
		for proto, send := range senders {
			for _, n := range []int{80, 81, 100, 101, 990, 5000} {
				for _, line := range []string{"a%d", "zz%d", "a", "x-oy-%d"} {
					t.Run(fmt.Sprintf("%s%s %d of %s", proto, name, n, line), func(t *testing.T) {
						x.app.Forget()
						var fields []string
						for i := range n - 2 { // besides type and length
							fields = append(fields, strings.Replace(line, "%d", fmt.Sprint(i), 1), "")
						}
						capsule := x.oz.Capsule(sandbox.CapsuleSpec{EventSession: "s", PayloadSize: 100, Outcome: "DECLINED"})
						status := send(t, capsule, fields)
						if n > mostLines {
							if status != 431 && status != 0 { // or the server hangs up
								t.Errorf("got %d, want 431", status)
							}
							x.app.None(t)
							return
						}
						if status != 200 {
							t.Fatalf("got %d", status)
						}
						r := x.app.Only(t)
						declined := verdict{decision: "DECLINED", status: "FINISHED", system: "DECLINED", quality: "DECLINED"}
						assertReserved(t, r, declined.headers(r, "s"))
					})
				}
			}
		}
	}
}

func (x *chain) floodOverH1(t testing.TB, capsule []byte, fields []string) int {
	conn := x.dialRaw(t)
	head := postHead("/verify", len(capsule))
	for i := 0; i < len(fields); i += 2 {
		head = append(head, fields[i]+":")
	}
	conn.Write([]byte(strings.Join(head, "\r\n") + "\r\n\r\n" + string(capsule))) // which may be refused by now
	a, _ := conn.tryRead("POST")
	return a.Status
}

func (x *chain) floodOverH2(t testing.TB, capsule []byte, fields []string) int {
	conn := x.dialRawH2(t)
	conn.sendFields(t, 1, false, postFields("/verify", len(capsule), fields...)...)
	conn.WriteData(1, true, capsule) // which may be refused by now
	a, _ := conn.tryRead(1)
	return a.Status
}

func (x *chain) floodOverH3(t testing.TB, capsule []byte, fields []string) int {
	conn, _ := x.dialH3(t)
	stream := openFrames(t, conn)
	stream.sendFields(t, postFields("/verify", len(capsule), fields...)...)
	stream.sendFrame(h3Data, capsule)
	stream.Close()
	a, _ := stream.tryRead()
	return a.Status
}
