package diagnose

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Conn is a connection of HTTP/2 on which fields go that no client library would send.
type h2Conn struct {
	*http2.Framer
	out    bytes.Buffer // a field block
	enc    *hpack.Encoder
	whole  int64 // what may be sent yet on the connection
	stream int64 // and on the stream
}

// openH2 does the opening of the protocol.
func openH2(conn io.ReadWriter) (*h2Conn, error) {
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	c := &h2Conn{Framer: http2.NewFramer(conn, conn), whole: 65535, stream: 65535}
	c.enc = hpack.NewEncoder(&c.out)
	c.AllowIllegalWrites = true
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := c.WriteSettings(); err != nil {
		return nil, err
	}
	frame, err := c.ReadFrame()
	if err != nil {
		return nil, err
	}
	if _, ok := frame.(*http2.SettingsFrame); !ok {
		return nil, errors.New("not HTTP/2")
	}
	return c, c.handle(frame, 0, new(h2Answer))
}

// speaksH2 reports whether the site takes HTTP/2: over TLS, or in the clear without an upgrade.
func (a *attack) speaksH2(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, a.opts.Timeout/10)
	defer cancel()
	conn, err := a.dial(ctx, "h2")
	if err != nil {
		return false
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if conn.SetDeadline(deadline) != nil {
		return false
	}
	_, err = openH2(conn)
	return err == nil
}

func (a *attack) sendH2(conn net.Conn, s probe) ([]reply, error) {
	c, err := openH2(conn)
	if err != nil {
		return nil, err
	}
	if got, ok := c.do(1, a.h2Fields(s.request), s.request); ok {
		return []reply{got}, nil
	}
	return nil, nil
}

// h2Fields returns a request's header, names and values in turn.
func (a *attack) h2Fields(r request) []string {
	fields := []string{":method", r.method, ":scheme", a.opts.To.Scheme, ":authority", a.opts.To.Host, ":path", r.target}
	if r.method == http.MethodConnect {
		fields = []string{":method", r.method, ":authority", a.opts.To.Host}
	}
	if !names(r.fields, "user-agent") {
		fields = append(fields, "user-agent", attackAgent)
	}
	fields = append(fields, split(a.opts.Fields)...)
	fields = append(fields, split(r.fields)...)
	if r.body != nil && !r.chunked {
		fields = append(fields, "content-length", strconv.Itoa(len(r.body)))
	}
	return fields
}

// split makes names and values of lines, in the lower case that HTTP/2 asks for.
func split(lines []string) (fields []string) {
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ":")
		fields = append(fields, strings.ToLower(name), strings.Trim(value, " "))
	}
	return fields
}

// h2Answer is an answer in progress.
type h2Answer struct {
	status int
	header http.Header
	body   []byte
	ended  bool // whole, or cut off
}

// do makes a request on a stream. It reports false if there was no answer.
func (c *h2Conn) do(id uint32, fields []string, r request) (reply, bool) {
	got := &h2Answer{header: http.Header{}}
	err := c.write(id, fields, r, got)
	for err == nil && !got.ended {
		err = c.step(id, got)
	}
	if got.status == 0 {
		return reply{}, false
	}
	return newReply(&http.Response{StatusCode: got.status, Header: got.header}, got.body), true
}

func (c *h2Conn) write(id uint32, fields []string, r request, got *h2Answer) error {
	hasBody := r.body != nil || r.chunked
	if err := c.block(id, fields, !hasBody && len(r.trailers) == 0); err != nil {
		return err
	}
	for rest := r.body; len(rest) > 0 && !got.ended; {
		n := min(int64(len(rest)), c.whole, c.stream, 16<<10)
		if n <= 0 {
			if err := c.step(id, got); err != nil {
				return err
			}
			continue
		}
		if err := c.WriteData(id, false, rest[:n]); err != nil {
			return err
		}
		rest, c.whole, c.stream = rest[n:], c.whole-n, c.stream-n
	}
	switch {
	case got.ended:
		return nil
	case len(r.trailers) > 0:
		return c.block(id, split(r.trailers), true)
	case hasBody:
		return c.WriteData(id, true, nil)
	}
	return nil
}

// block writes a header or trailer, in as many frames as it takes.
func (c *h2Conn) block(id uint32, fields []string, end bool) error {
	c.out.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := c.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			return err
		}
	}
	pieces := slices.Collect(slices.Chunk(c.out.Bytes(), 16<<10))
	for i, piece := range pieces {
		last := i == len(pieces)-1
		var err error
		if i == 0 {
			err = c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: piece, EndStream: end, EndHeaders: last})
		} else {
			err = c.WriteContinuation(id, last, piece)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *h2Conn) step(id uint32, got *h2Answer) error {
	frame, err := c.ReadFrame()
	if err != nil {
		return err
	}
	return c.handle(frame, id, got)
}

func (c *h2Conn) handle(frame http2.Frame, id uint32, got *h2Answer) error {
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		return c.settle(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			return c.WritePing(true, f.Data)
		}
		return nil
	case *http2.GoAwayFrame:
		got.ended = got.ended || f.ErrCode != http2.ErrCodeNo
		return nil
	case *http2.WindowUpdateFrame:
		switch f.StreamID {
		case 0:
			c.whole += int64(f.Increment)
		case id:
			c.stream += int64(f.Increment)
		}
		return nil
	}
	if frame.Header().StreamID != id {
		return nil
	}
	return c.collect(frame, id, got)
}

func (c *h2Conn) settle(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if size, ok := f.Value(http2.SettingInitialWindowSize); ok {
		c.stream += int64(size) - 65535
	}
	return c.WriteSettingsAck()
}

func (c *h2Conn) collect(frame http2.Frame, id uint32, got *h2Answer) error {
	switch f := frame.(type) {
	case *http2.MetaHeadersFrame:
		if status, err := strconv.Atoi(f.PseudoValue("status")); err == nil && status >= http.StatusOK {
			got.status = status
			for _, field := range f.RegularFields() {
				got.header.Add(field.Name, field.Value)
			}
		}
		got.ended = f.StreamEnded()
	case *http2.DataFrame:
		got.ended = f.StreamEnded()
		if len(got.body) < maxAnswer {
			got.body = append(got.body, f.Data()...)
		}
		if n := f.Length; n > 0 && !got.ended {
			return errors.Join(c.WriteWindowUpdate(0, n), c.WriteWindowUpdate(id, n))
		}
	case *http2.RSTStreamFrame:
		got.ended = true
	}
	return nil
}
