package observability

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestAxes promises numbers on an axis that are easy to read, in a unit that suits them, above the largest value.
func TestAxes(t *testing.T) {
	for _, test := range []struct {
		unit string
		top  float64
		want string
	}{
		{seconds, 0.0000031, "0 1 2 3 4 µs"}, {seconds, 0.0032, "0 1 2 3 4 ms"}, {seconds, 0.925, "0 0.25 0.5 0.75 1 s"}, {seconds, 1.7, "0 0.5 1 1.5 2 s"},
		{seconds, 900, "0 250 500 750 1000 s"}, {seconds, 10 * 3600, "0 2.5 5 7.5 10 h"}, {seconds, 30 * 86400, "0 10 20 30 40 d"},
		{bytes, 700, "0 200 400 600 800 B"}, {bytes, 3 << 20, "0 1 2 3 4 MiB"}, {bytesPerSec, 100 << 10, "0 25 50 75 100 KiB/s"},
		{share, 0.07, "0 2 4 6 8%"}, {perSecond, 19, "0 5 10 15 20 /s"}, {perSecond, 0, "0 0.25 0.5 0.75 1 /s"}, {boolean, 1, "0 1"}, {count, 3, "0 1 2 3 4"},
	} {
		g := &graph{panel: Panel{FieldConfig: &fieldConfig{Defaults: defaults{Unit: test.unit}}}, curves: []curve{{points: []Point{{0, test.top}}}}}
		g.dress()
		if g.top < test.top {
			t.Errorf("%s: the axis ends at %v, below %v", test.unit, g.top, test.top)
		}
		var texts []string
		for i := range g.unit.ticks + 1 {
			texts = append(texts, g.unit.text(g.top/float64(g.unit.ticks)*float64(i)))
		}
		got := strings.ReplaceAll(strings.Join(texts[:len(texts)-1], " "), g.unit.suffix, "") + " " + texts[len(texts)-1]
		if got != test.want {
			t.Errorf("%s up to %v: %q, want %q", test.unit, test.top, got, test.want)
		}
	}
}

// TestDraw promises gaps where a series has no value or no point, and names that cannot break the picture.
func TestDraw(t *testing.T) {
	const answer = `{"status": "success", "data": {"result": [
		{"metric": {"job": "a<b&\"c"}, "values": [[1000, "1"], [1001, "2"], [1002, "NaN"], [1003, "4"], [1004, "3"], [1008, "3"]]},
		{"metric": {"job": "quiet"}, "values": [[1000, "0"], [1004, "0"]]}]}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) }))
	t.Cleanup(server.Close)
	d := &Dashboard{Panels: []Panel{panel{title: "A & B", answers: "Why?", unit: count, queries: []query{{"{{job}}", "x"}}}.graph(1, gridPos{})}}
	picture, err := Draw(t.Context(), d, Prometheus(server.URL), time.Unix(1000, 0), time.Unix(1008, 0))
	if err != nil {
		t.Fatal(err)
	}
	for text, times := range map[string]int{`class="line"`: 3, "A &amp; B": 1, "a&lt;b&amp;&#34;c": 1, "1 at zero": 1, "NaN": 0, "<b": 0} {
		if n := strings.Count(string(picture), text); n != times {
			t.Errorf("%s comes %d times, want %d\n%s", text, n, times, picture)
		}
	}
}

// TestPrometheusErrors promises an error that names the query when it is wrong, and none of a value that was never there.
func TestPrometheusErrors(t *testing.T) {
	for answer, want := range map[string]string{
		`{"status": "error", "error": "bad_data: no such function"}`: "no such function",
		`<html>`: "invalid character",
		`{"status": "success", "data": {"result": [{"metric": {}, "value": [1, "much"]}]}}`: "much",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) }))
		_, err := Prometheus(server.URL).Query(t.Context(), "rote(x)")
		server.Close()
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "rote(x)") {
			t.Errorf("%s: %v", answer, err)
		}
	}
}
