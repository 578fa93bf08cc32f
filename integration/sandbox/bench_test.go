package sandbox

import (
	"bytes"
	"net/http/httptest"
	"testing"
)

// BenchmarkCapsule is what the sandbox itself costs in a load test: a capsule of 2 MiB in, a best shot of 400 KB out.
//
//	go test -run '^$' -bench Capsule ./integration/sandbox
func BenchmarkCapsule(b *testing.B) {
	s, err := New(Options{ReuseTokens: true, BestShotSize: 400_000})
	if err != nil {
		b.Fatal(err)
	}
	c := s.Capsule(CapsuleSpec{PayloadSize: 2 << 20})
	b.SetBytes(int64(len(c)))
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("POST", FoldersPath, bytes.NewReader(c))
		r.Header.Set("Content-Type", "application/octet-stream")
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, r); w.Code != 201 {
			b.Fatal(w.Code)
		}
	}
}
