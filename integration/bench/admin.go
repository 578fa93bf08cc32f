package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// Metrics of the gateway.
const (
	inFlightMetric  = "caddy_oz_instant_in_flight"
	queuedMetric    = "caddy_oz_instant_queued"
	memoryMetric    = "caddy_oz_instant_memory_bytes"
	goroutineMetric = "go_goroutines"
	heapMetric      = "go_memstats_heap_alloc_bytes"
)

var adminClient = &http.Client{Timeout: timeLimit, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}

// metric returns one of the gateway's metrics that has no labels.
func (g *gateway) metric(ctx context.Context, name string) (float64, error) {
	text, err := g.callAdmin(ctx, http.MethodGet, "/metrics", "")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(text) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("the gateway has no metric %s", name)
}

// reload gives the gateway another Caddyfile, in the environment that it was started in.
func (g *gateway) reload(ctx context.Context, caddyfile string) error {
	_, err := g.callAdmin(ctx, http.MethodPost, "/load", caddyfile)
	return err
}

func (g *gateway) callAdmin(ctx context.Context, method, path, body string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+g.admin+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "text/caddyfile")
	resp, err := adminClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	return string(text), err
}

// logLine is what the gateway logs about one capsule: the module when it is decided or refused for lack of capacity, and the access
// log when it is answered.
type logLine struct {
	Message string  `json:"msg"`
	Time    float64 `json:"ts"`    // seconds since 1970
	Queue   float64 `json:"queue"` // seconds
	AtOz    float64 `json:"oz"`    // seconds
	Request struct {
		Header http.Header `json:"headers"`
	} `json:"request"`
	Oz struct { // in the access log
		Queue float64 `json:"queue"` // seconds
		Tries int     `json:"upstream_tries"`
	} `json:"oz_instant"`
}

const (
	decidedMessage = "capsule decided"
	accessMessage  = "handled request"
)

// logged returns the gateway's log lines with this message.
func (g *gateway) logged(message string) (lines []logLine, err error) {
	file, err := os.Open(g.logFile)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var l logLine
		if json.Unmarshal(scanner.Bytes(), &l) == nil && l.Message == message {
			lines = append(lines, l)
		}
	}
	return lines, scanner.Err()
}
