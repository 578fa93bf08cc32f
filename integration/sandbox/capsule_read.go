package sandbox

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"sync"
	"time"
)

// refusal is why a body is refused. The reason goes into the log, and of what is no capsule into the answer; of a capsule
// the legacy text does, if LegacyMessages is on.
type refusal struct {
	code   int
	legacy string
	reason string
}

const textInvalid = "Invalid request data"

func refuse(code int, legacy, reason string) *refusal { return &refusal{code, legacy, reason} }

// meter reads a request's body. It counts and hashes every byte, and remembers how the body ended: that a capsule is too
// short is the client's fault, that its connection broke is nobody's, and io.ReadFull says io.ErrUnexpectedEOF to both.
type meter struct {
	body  io.Reader
	hash  hash.Hash
	size  int64
	limit int64 // 0: none
	ended bool  // the body was read to its proper end
	err   error // the body broke
	count func(n int)
}

func newMeter(body io.Reader, limit int64) *meter {
	return &meter{body: body, hash: sha256.New(), limit: limit, count: func(int) {}}
}

var errTooLarge = errors.New("larger than the limit")

func (m *meter) Read(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	n, err := m.body.Read(p)
	m.hash.Write(p[:n])
	m.size += int64(n)
	m.count(n)
	switch {
	case m.limit > 0 && m.size > m.limit:
		m.err = errTooLarge
		return n, m.err
	case err == io.EOF:
		m.ended = true
	case err != nil:
		m.err = err
	}
	return n, err
}

func (m *meter) digest() string { return hex.EncodeToString(m.hash.Sum(nil)) }

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// copyTo reads n bytes, or all there are when n is negative, into sink (which may be nil), and returns how many came.
func (m *meter) copyTo(sink hash.Hash32, n int64) int64 {
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	var done int64
	for n < 0 || done < n {
		p := buf[:]
		if n >= 0 {
			p = p[:min(int64(len(p)), n-done)]
		}
		got, err := m.Read(p)
		if sink != nil {
			sink.Write(p[:got])
		}
		done += int64(got)
		if err != nil {
			break
		}
	}
	return done
}

// drain reads whatever is left, so that the digest covers the whole body.
func (m *meter) drain() { m.copyTo(nil, -1) }

// readCapsule reads the body to its end, whatever is in it, and judges all that needs no memory of other capsules. The
// media are never held. An error means that the body did not arrive.
func readCapsule(m *meter, acceptAny bool) (capsule, *refusal, error) {
	c, refused := readContainer(m)
	m.drain()
	switch {
	case m.err != nil:
		return c, nil, m.err
	case m.size == 0:
		return c, refuse(13, "No data container provided", "empty body"), nil
	case refused == errNotOurs && acceptAny:
		return anyCapsule(m.size), nil, nil
	}
	return c, refused, nil
}

var errNotOurs = refuse(14, "Invalid Data Container", "not a sandbox capsule")

// readContainer does the part before unpacking, and keeps for later what is found damaged on the way.
func readContainer(m *meter) (c capsule, refused *refusal) {
	const unpacking = "Data container unpacking failed"

	prefix := make([]byte, len(capsuleMagic)+4)
	if _, err := io.ReadFull(m, prefix); err != nil || string(prefix[:len(capsuleMagic)]) != capsuleMagic {
		return c, errNotOurs
	}
	size := binary.BigEndian.Uint32(prefix[len(capsuleMagic):])
	if size > maxCapsuleHeader {
		return c, refuse(14, unpacking, "header too long")
	}
	header := make([]byte, int(size)+signatureSize)
	if _, err := io.ReadFull(m, header); err != nil {
		return c, refuse(14, unpacking, "cut in the header")
	}
	header, signature := header[:size], header[size:]
	if !hmac.Equal(signature, sign(append(prefix, header...))) {
		return c, refuse(14, "Invalid signature", "signature wrong")
	}
	if err := json.Unmarshal(header, &c); err != nil || c.Size < 0 {
		return c, refuse(14, unpacking, "header unreadable")
	}

	intact, complete := readMedia(m, c)
	if !complete {
		return c, refuse(14, unpacking, "cut in the media")
	}
	sum := m.hash.Sum(nil) // over everything so far
	var given [hashSize]byte
	if _, err := io.ReadFull(m, given[:]); err != nil {
		return c, refuse(14, unpacking, "cut in the hash")
	}
	if !hmac.Equal(sum, given[:]) {
		return c, refuse(14, "Invalid SummingHash", "summing hash wrong")
	}
	if m.copyTo(nil, 1) != 0 {
		return c, refuse(14, unpacking, "bytes after the end")
	}
	if !intact {
		c.damaged = true
	}
	return c, nil
}

// readMedia reads the c.Size bytes of media. intact: they are as the header says. complete: they are all there.
func readMedia(m *meter, c capsule) (intact, complete bool) {
	intact, left := true, c.Size
	for _, medium := range c.Media {
		if medium.Size < 0 || medium.Size > left {
			intact = false
			break
		}
		crc := crc32.NewIEEE()
		if m.copyTo(crc, medium.Size) != medium.Size {
			return false, false
		}
		left -= medium.Size
		intact = intact && crc.Sum32() == medium.CRC
	}
	if len(c.Media) > 0 && left > 0 {
		intact = false
	}
	return intact, m.copyTo(nil, left) == left
}

// judge goes on where readCapsule ends: the session token, then what unpacking brings to light.
func (s *Sandbox) judge(c capsule, o Options) *refusal {
	const token = "Invalid or empty Session Token"
	now := o.Clock()
	if c.unsigned {
		return nil
	}
	if c.SessionToken == "" {
		return refuse(14, token, "session token empty")
	}
	claims, err := s.keys.verify(c.SessionToken, now)
	if err != nil {
		return refuse(14, token, "session token: "+err.Error())
	}
	if !o.ReuseTokens && !s.used.spend(claims, now) {
		return refuse(14, token, "session token used before")
	}
	switch {
	case c.Payload == nil:
		return refuse(3, textInvalid, "no payload")
	case len(c.Media) == 0:
		return refuse(4, textInvalid, "no media")
	case c.damaged:
		return refuse(5, textInvalid, "a medium does not fit its checksum")
	}
	return nil
}

// anyCapsule is what Options.AcceptAny makes of noise.
func anyCapsule(size int64) capsule {
	c := CapsuleSpec{Outcome: Success, Media: 1, EventSession: newUUID()}.header(nil)
	c.Size, c.unsigned = size, true
	return c
}

// wait lets an analysis take its time, and longer while analyses are held, or less when the sandbox closes.
func (s *Sandbox) wait(d time.Duration) {
	s.mu.Lock()
	held := s.held
	s.mu.Unlock()
	select {
	case <-held:
	case <-s.done:
	}
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.done:
	}
}
