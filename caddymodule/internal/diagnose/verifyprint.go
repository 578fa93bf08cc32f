package diagnose

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"
)

// Print writes the claims as a table, or what doesn't hold, for people. Claims
// are the client's choice in part (path), and mustn't steer a terminal.
func (s *Seal) Print(out io.Writer) error {
	var text bytes.Buffer
	if s.Holds {
		s.printClaims(&text)
	} else {
		fmt.Fprintln(&text, "the seal does not hold:")
		for _, f := range s.Failures {
			fmt.Fprintf(&text, "  %s: %s\n", f.Fault, printable(f.Detail))
		}
	}
	_, err := out.Write(text.Bytes())
	return err
}

func (s *Seal) printClaims(out io.Writer) {
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(table, "kid\t%s\n", printable(s.KeyID))
	for _, name := range s.names {
		fmt.Fprintf(table, "%s\t%s\n", printable(name), printable(s.shown(name)))
	}
	_ = table.Flush() // the writer below is a buffer
}

// shown returns a claim for people: a time with how far it is from now.
func (s *Seal) shown(name string) string {
	if name != "iat" && name != "exp" {
		return s.Claim(name)
	}
	at, failure := s.second(name)
	if failure != nil {
		return string(s.claims[name])
	}
	distance := span(s.now.Sub(at)) + " ago"
	if at.After(s.now) {
		distance = "in " + span(at.Sub(s.now))
	}
	return fmt.Sprintf("%d   %s, %s", at.Unix(), at.Format(time.RFC3339), distance)
}

// WriteJSON writes the seal as a JSON document. Its strings are free of
// control characters: encoding/json escapes only those below U+0020, while a
// terminal also obeys U+009B, and people are misled by U+202E.
func (s *Seal) WriteJSON(out io.Writer) error {
	var doc bytes.Buffer
	if err := writeJSON(&doc, s); err != nil {
		return err
	}
	var text strings.Builder
	for _, r := range doc.String() {
		if r == '\n' || graphic(r) == r {
			text.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&text, `\u%04x`, unit)
		}
	}
	_, err := io.WriteString(out, text.String())
	return err
}
