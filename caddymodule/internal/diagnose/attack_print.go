package diagnose

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/oz-instant/caddy-oz-instant/caddymodule/progress"
)

// Print announces an attack.
func (p AttackPlan) Print(out io.Writer) {
	took := time.Duration(float64(p.Requests) / p.Rate * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(out, "Attack on %s: at most %d requests to %s, %g a second (%s), in %d rows.\n",
		printable(p.To), p.Requests, printable(p.Host), p.Rate, took, p.Rows)
	fmt.Fprintf(out, "Genuine capsules: %s; at most %d SUCCESS and %d DECLINED are used up. Oz also gets some garbage.\n",
		printable(p.Source), p.Successes, p.Declines)
	fmt.Fprintf(out, "A forged request that is let in acts on your app as a user's does. User-Agent: %s.\n\n", attackAgent)
}

// Learning shows that an attack begins.
func (p *Printer) Learning(plan AttackPlan) {
	p.rows = plan.Rows
	p.line.Begin(progress.Phase{Name: "learning how the site answers"})
}

// PrintRow shows a row as it ends, and the one in progress. It is an observer for Attack.
func (p *Printer) PrintRow(r AttackRow) {
	if r.State != "" {
		p.ended++
		line := fmt.Sprintf("%s  %-25s  %-19s  %s", p.mark(r.State), r.Name, cmp.Or(r.Advisory, "-"), printable(r.Detail))
		_, _ = io.WriteString(p.out, strings.TrimRight(line, " ")+"\n") // in one piece, so that nothing of a line waits
		return
	}
	amount := fmt.Sprintf("%d of %d rows, %s", p.ended, p.rows, r.Name)
	if p.row.Swap(&amount) == nil {
		p.line.Begin(progress.Phase{Name: "attacking", Amount: func() string { return *p.row.Load() }})
	}
}

// PrintSummary counts the rows, and says why if the attack could not tell.
func (r AttackReport) PrintSummary(out io.Writer) {
	counts := map[State]int{}
	for _, row := range r.Rows {
		counts[row.State]++
	}
	fmt.Fprintln(out)
	if r.Told != "" {
		fmt.Fprintf(out, "Only a genuine SUCCESS is answered with %s.\n", printable(r.Told))
	}
	fmt.Fprintf(out, "%d rows hold, %d are broken, %d were not tried or could not be told, %d requests.\n",
		counts[Holds], counts[Broken], counts[NotTried]+counts[Unknown], r.Requests)
	if r.Why != "" {
		fmt.Fprintf(out, "This run could not tell: %s.\n", printable(r.Why))
	}
}

// WriteAttack writes the report as one document.
func WriteAttack(out io.Writer, r AttackReport) error { return writeJSON(out, r) }
