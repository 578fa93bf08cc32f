package integration_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// What the documents show is checked. A comment right before a code block, which no reader sees, says how:
//
//	<!-- run -->       a sh block: run in the top folder, by bash -e, while ./xcaddy.sh run is up; it must end with status 0
//	<!-- prints -->    any block right after one that is run: what that prints. Each line must come, in this order; lines
//	                   between them may be left out, and … stands for any text within a line
//	<!-- shown: … -->  a sh block that is not run here, and why not
//	<!-- handler -->   a json block right after a caddyfile block: the oz_instant handler that this adapts to
//	<!-- part of … --> a block that stands in a file, whose path from the top folder follows
//	<!-- one capsule: … --> what a capsule leaves: see TestDocsOneCapsule
//
// A sh block must have one of the comments. A caddyfile block needs none: each must adapt by itself.

// block is a fenced code block of a Markdown text.
type block struct {
	Line   int    // of the fence, from 1
	Lang   string // sh, caddyfile …
	Marker string // the comment right before it, less its dashes
	Text   string
}

var markerLine = regexp.MustCompile(`^<!--\s*(.*?)\s*-->$`)

// readBlocks returns the fenced code blocks of a Markdown text.
func readBlocks(markdown string) (blocks []block) {
	const fence = "```"
	var open *block
	marker := ""
	number := 0
	for line := range strings.Lines(markdown) {
		number++
		text := strings.TrimSpace(line)
		match := markerLine.FindStringSubmatch(text)
		switch {
		case open != nil && text == fence:
			blocks, open, marker = append(blocks, *open), nil, ""
		case open != nil:
			open.Text += line
		case strings.HasPrefix(text, fence):
			open = &block{Line: number, Lang: strings.TrimPrefix(text, fence), Marker: marker}
		case match != nil:
			marker = match[1]
		case text != "":
			marker = ""
		}
	}
	return blocks
}

// example is a sh block to run and what it has to print.
type example struct {
	block
	Prints string // empty: whatever it likes
}

// examples returns what is to be run, in order, and everything that has no marker or one that means nothing.
func examples(blocks []block) (found []example, errs []error) {
	for i, b := range blocks {
		shown := strings.HasPrefix(b.Marker, "shown: ")
		switch {
		case b.Marker == "run" && b.Lang == "sh":
			found = append(found, example{block: b})
		case b.Marker == "prints" && i > 0 && blocks[i-1].Marker == "run":
			found[len(found)-1].Prints = b.Text
		case b.Marker == "handler" && b.Lang == "json" && i > 0 && blocks[i-1].Lang == "caddyfile": // see TestDocsAdapt
		case strings.HasPrefix(b.Marker, "part of ") && b.Lang != "sh": // see TestDocsParts
		case strings.HasPrefix(b.Marker, oneCapsuleMarker) && b.Lang != "sh":
		case b.Marker != "" && !shown:
			errs = append(errs, fmt.Errorf("line %d: the marker %q means nothing here", b.Line, b.Marker))
		case b.Lang == "sh" && !shown:
			errs = append(errs, fmt.Errorf("line %d: a sh block must be marked with run or shown", b.Line))
		}
	}
	return found, errs
}

// missing returns the first line of want that does not come in got, or nothing.
func missing(want, got string) string {
	rest := strings.Split(got, "\n")
next:
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); strings.Trim(line, "… ") == "" {
			continue
		}
		for i, candidate := range rest {
			if hasPieces(candidate, strings.Split(line, "…")) {
				rest = rest[i+1:]
				continue next
			}
		}
		return line
	}
	return ""
}

// hasPieces reports whether all pieces come in the text, in order.
func hasPieces(text string, pieces []string) bool {
	for _, piece := range pieces {
		_, after, found := strings.Cut(text, strings.TrimSpace(piece))
		if !found {
			return false
		}
		text = after
	}
	return true
}

func TestDocsMarkers(t *testing.T) {
	const fence = "```"
	markdown := strings.ReplaceAll(`
<!-- run -->
~sh
echo one
echo two
~

<!-- prints -->

~json
one
~

<!-- shown: it is the harness -->
~sh
./xcaddy.sh run
~
<!-- run -->
This text takes the marker away.
~sh
rm -r important
~
<!-- typo -->
~caddyfile
:80
~
<!-- handler -->
~json
{}
~
<!-- handler -->
~json
{}
~
`, "~", fence)
	found, errs := examples(readBlocks(markdown))
	if len(found) != 1 || found[0].Text != "echo one\necho two\n" || found[0].Prints != "one\n" || found[0].Line != 3 {
		t.Errorf("examples: %+v", found)
	}
	if len(errs) != 3 || !strings.Contains(errs[0].Error(), "line 20") || !strings.Contains(errs[1].Error(), "typo") ||
		!strings.Contains(errs[2].Error(), "line 32") {
		t.Errorf("errors: %v", errs)
	}
}

func TestDocsExpectations(t *testing.T) {
	const got = "HTTP/1.1 200 OK\nDate: today\n\n{\n  \"id\": \"1234\",\n  \"verdict\": \"welcome\"\n}\n"
	for want, miss := range map[string]string{
		"":                            "",
		"200 OK\n\"verdict\"\n":       "",
		"{\n…\n\"id\": \"…\",\n}":     "",
		"\"verdict\"\n200 OK\n":       "200 OK",
		"\"verdict\": \"no entry\"\n": "\"verdict\": \"no entry\"",
		"\"id\": …: 1234":             "\"id\": …: 1234",
	} {
		if m := missing(want, got); m != miss {
			t.Errorf("missing(%q) = %q, want %q", want, m, miss)
		}
	}
}
