package oz

import (
	"encoding/json"
	"testing"

	"github.com/tidwall/sjson"
)

// BenchmarkPrune is one answer from its first byte to the pruned document, in
// the pieces that a connection gives.
//
//	go test -run '^$' -bench Prune -benchmem ./caddymodule/internal/oz
func BenchmarkPrune(b *testing.B) {
	for _, size := range []struct {
		name  string
		bytes int
	}{{"50KB", 50 << 10}, {"400KB", 400 << 10}, {"20MB", 20 << 20}} {
		doc := []byte(goodFolder(size.bytes))
		b.Run(size.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(doc)))
			for b.Loop() {
				p := NewPruner(1<<20, false)
				for piece := range pieces(doc) {
					if _, err := p.Write(piece); err != nil {
						b.Fatal(err)
					}
				}
				if err := p.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// pieces yields doc in parts of 64 KB.
func pieces(doc []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(doc) > 0 {
			n := min(len(doc), 64<<10)
			if !yield(doc[:n]) {
				return
			}
			doc = doc[n:]
		}
	}
}

// BenchmarkPeers is what other ways to lose a best shot of 400 KB cost, once
// the whole answer is in memory.
//
//	go test -run '^$' -bench Peers -benchmem ./caddymodule/internal/oz
func BenchmarkPeers(b *testing.B) {
	doc := []byte(goodFolder(400 << 10))
	for _, peer := range []struct {
		name string
		run  func() error
	}{
		{"sjson", func() error {
			_, err := sjson.DeleteBytes(doc, "analyses.0.results_media.0.output_images.0.image_b64")
			return err
		}},
		{"encoding-json", func() error {
			var v any
			if err := json.Unmarshal(doc, &v); err != nil {
				return err
			}
			_, err := json.Marshal(v)
			return err
		}},
		{"ReadFolder", func() error {
			_, err := ReadFolder(doc)
			return err
		}},
	} {
		b.Run(peer.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(doc)))
			for b.Loop() {
				if err := peer.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkJudge is what comes after pruning.
//
//	go test -run '^$' -bench Judge -benchmem ./caddymodule/internal/oz
func BenchmarkJudge(b *testing.B) {
	doc := []byte(goodFolder(0))
	b.ReportAllocs()
	for b.Loop() {
		if v := qualityRequired.Judge(201, doc, nil); v.Decision != Success {
			b.Fatal(v)
		}
	}
}
