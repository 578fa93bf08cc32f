package sandbox

import (
	"net/http"
	"slices"
	"strconv"
)

// CapsulePath is where the sandbox makes capsules: a GET of CapsulePath?outcome=DECLINED&size=65536 returns one that is fit to be
// posted. Oz has nothing like it. It counts in no Stats, leaves no Receipt and meets no Fault.
const CapsulePath = "/sandbox/capsule"

// maxMade is the size of the media in the largest capsule that is made on request.
const maxMade = 64 << 20

func (s *Sandbox) serveCapsule(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	spec := CapsuleSpec{Outcome: query.Get("outcome")}
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "want GET", http.StatusMethodNotAllowed)
		return
	}
	if spec.Outcome != "" && !slices.Contains(Outcomes(), spec.Outcome) {
		http.Error(w, "outcome: unknown", http.StatusBadRequest)
		return
	}
	if text := query.Get("size"); text != "" {
		size, err := strconv.ParseInt(text, 10, 64)
		if err != nil || size < 1 || size > maxMade {
			http.Error(w, "size: want a number of bytes", http.StatusBadRequest)
			return
		}
		spec.PayloadSize = size
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(s.Capsule(spec)) // the client may have left
}
