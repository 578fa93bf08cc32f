package diagnose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// need is what a request must have in it.
type need int

const (
	nothing  need = iota
	genuine       // a capsule that ends in SUCCESS
	declined      // a genuine capsule that ends in DECLINED
	used          // the capsule that was let in before
)

// Capsules is where an attack has genuine capsules from: files, of which each can be used once, or a sandbox.
type Capsules struct {
	Success  [][]byte
	Declined [][]byte
	Sandbox  *url.URL // makes as many as are wanted
}

var errNoCapsule = errors.New("needs one more genuine capsule")

// String says where capsules come from.
func (c *Capsules) String() string {
	if c.Sandbox != nil {
		return "made by the sandbox at " + c.Sandbox.Host
	}
	return fmt.Sprintf("%d SUCCESS and %d DECLINED given", len(c.Success), len(c.Declined))
}

// left returns how many capsules of a kind there are yet.
func (c *Capsules) left(kind need) int {
	switch {
	case c.Sandbox != nil:
		return 1 << 20
	case kind == declined:
		return len(c.Declined)
	}
	return len(c.Success)
}

// take returns a capsule that nobody has sent.
func (c *Capsules) take(ctx context.Context, kind need) ([]byte, error) {
	outcome, list := "SUCCESS", &c.Success
	if kind == declined {
		outcome, list = "DECLINED", &c.Declined
	}
	if c.Sandbox != nil {
		return makeCapsule(ctx, c.Sandbox, outcome)
	}
	if len(*list) == 0 {
		return nil, fmt.Errorf("%w that ends in %s", errNoCapsule, outcome)
	}
	capsule := (*list)[0]
	*list = (*list)[1:]
	return capsule, nil
}

const (
	madeSize   = 16 << 10
	maxCapsule = 1 << 20 // that a sandbox may give
)

// makeCapsule has a sandbox make a capsule.
func makeCapsule(ctx context.Context, sandbox *url.URL, outcome string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	address := fmt.Sprintf("%s/sandbox/capsule?outcome=%s&size=%d", strings.TrimSuffix(sandbox.String(), "/"), outcome, madeSize)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", attackAgent)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy from the environment
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking the sandbox for a capsule: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxCapsule))
	if err == nil && (resp.StatusCode != http.StatusOK || len(body) == 0) {
		err = fmt.Errorf("answered %d", resp.StatusCode)
	}
	if err != nil {
		return nil, fmt.Errorf("asking the sandbox for a capsule: %w", err)
	}
	return body, nil
}
