package observability

import (
	"context"
	"fmt"
	"html"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

// The picture's measures, in pixels: of a panel, of the graph in it, and of what stands between.
const (
	panelWidth, panelHeight = 400, 232
	graphLeft, graphTop     = 62, 50
	graphWidth, graphHeight = panelWidth - graphLeft - 14, 116
	gap, headingHeight      = 12, 34
	inRow                   = 3
	samples                 = 75 // of each series
)

// style makes the picture readable on light and on dark pages.
const style = `<style>
text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;fill:#59636e}
.page{fill:#f6f8fa}.panel{fill:#fff;stroke:#d1d9e0}.grid{stroke:#e4e8ec}.axis{stroke:#9aa4ae}
.heading{font-size:15px;font-weight:600;fill:#1f2328}.title{font-size:13px;font-weight:600;fill:#1f2328}
.num{text-anchor:end}.time{text-anchor:middle}.line{fill:none;stroke-width:1.5;stroke-linejoin:round;stroke-linecap:round}.dash{stroke-dasharray:6 4}
@media(prefers-color-scheme:dark){text{fill:#9198a1}.page{fill:#0d1117}.panel{fill:#151b23;stroke:#3d444d}.grid{stroke:#262c36}.axis{stroke:#656c76}
.heading,.title{fill:#f0f6fc}}
</style>
`

// palette is for series without a color of their own; each can be told from both backgrounds.
var palette = []string{"#3b82f6", "#e08700", "#0e9f6e", "#a855f7", "#0891b2", "#db2777", "#65a30d", "#78716c", "#ef4444"}

// named are Grafana's names of colors.
var named = map[string]string{"green": "#0e9f6e", "red": "#e5484d", "orange": "#e08700", "yellow": "#b8960c", "purple": "#a855f7", "blue": "#3b82f6"}

// Draw asks a Prometheus the queries of a dashboard, for a time of at most some hours, and draws the panels as an SVG picture.
// Series that are zero all the time are counted and not drawn.
func Draw(ctx context.Context, d *Dashboard, p Prometheus, from, to time.Time) ([]byte, error) {
	var body strings.Builder
	y, column := gap, 0
	for _, panel := range d.Panels {
		if panel.Type == "row" {
			if column > 0 {
				y, column = y+panelHeight+gap, 0
			}
			fmt.Fprintf(&body, `<text class="heading" x="%d" y="%d">%s</text>`+"\n", gap, y+22, html.EscapeString(panel.Title))
			y += headingHeight
			continue
		}
		g := graph{panel: panel, from: from, to: to}
		if err := g.ask(ctx, p); err != nil {
			return nil, err
		}
		fmt.Fprintf(&body, "<g transform=\"translate(%d %d)\">\n", gap+column*(panelWidth+gap), y)
		g.draw(&body)
		body.WriteString("</g>\n")
		if column++; column == inRow {
			y, column = y+panelHeight+gap, 0
		}
	}
	if column > 0 {
		y += panelHeight + gap
	}
	const width = gap + inRow*(panelWidth+gap)
	return fmt.Appendf(nil, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="the panels of the dashboard %s">`+"\n%s"+
		`<rect class="page" width="100%%" height="100%%"/>`+"\n%s</svg>\n", width, y, html.EscapeString(d.Title), style, &body), nil
}

// graph is a panel while it is drawn.
type graph struct {
	panel    Panel
	from, to time.Time
	step     time.Duration // between two points
	curves   []curve
	quiet    int // series that are zero all the time
	top      float64
	unit     unit
}

// curve is a series with what it looks like.
type curve struct {
	name, color string
	limit       bool
	points      []Point
	base        []float64 // where stacked on others
}

func (g *graph) ask(ctx context.Context, p Prometheus) error {
	long := g.to.Sub(g.from)
	g.step = max(time.Second, (long / samples).Round(time.Second))
	for _, target := range g.panel.Targets {
		list, err := p.QueryRange(ctx, Fill(target.Expr, max(4*g.step, 10*time.Second)), g.from, g.to, g.step)
		if err != nil {
			return err
		}
		for _, s := range list {
			name := nameOf(target.LegendFormat, s.Labels)
			if !s.Finite() || !slices.ContainsFunc(s.Points, func(p Point) bool { return p.Value != 0 }) {
				g.quiet++
				continue
			}
			g.curves = append(g.curves, curve{name: name, points: s.Points, limit: strings.HasSuffix(name, " limit")})
		}
	}
	g.dress()
	return nil
}

var labelName = regexp.MustCompile(`\{\{(\w+)\}\}`)

// nameOf fills in a legend.
func nameOf(legend string, labels map[string]string) string {
	return strings.TrimSpace(labelName.ReplaceAllStringFunc(legend, func(name string) string { return labels[name[2:len(name)-2]] }))
}

// dress gives each curve its color and, if they are stacked, its base, and finds the top of the axis.
func (g *graph) dress() {
	next := 0
	sums := map[float64]float64{}
	for i := range g.curves {
		c := &g.curves[i]
		switch c.color = g.panel.colorOf(c.name); {
		case c.color != "":
		case c.limit:
			c.color = named["red"]
		default:
			c.color = palette[next%len(palette)]
			next++
		}
		for _, p := range c.points {
			if math.IsNaN(p.Value) {
				p.Value = 0
			}
			c.base = append(c.base, sums[p.Time])
			if g.stacked() {
				sums[p.Time] += p.Value
				g.top = max(g.top, sums[p.Time])
			} else {
				g.top = max(g.top, p.Value)
			}
		}
	}
	name := g.panel.FieldConfig.Defaults.Unit
	g.top = unitOf(name, g.top).round(g.top)
	g.unit = unitOf(name, g.top)
}

func (g *graph) stacked() bool { return g.panel.FieldConfig.Defaults.Custom.Stacking.Mode == "normal" }

// colorOf returns the color that the dashboard gives to a name.
func (p Panel) colorOf(name string) string {
	for _, o := range p.FieldConfig.Overrides {
		if o.Matcher.ID != "byName" || o.Matcher.Options != name {
			continue
		}
		for _, property := range o.Properties {
			if value, ok := property.Value.(map[string]any); ok && property.ID == "color" {
				return named[fmt.Sprint(value["fixedColor"])]
			}
		}
	}
	return ""
}

func (g *graph) draw(out *strings.Builder) {
	question, _, _ := strings.Cut(g.panel.Description, "? ")
	fmt.Fprintf(out, `<rect class="panel" width="%d" height="%d" rx="6"/><text class="title" x="12" y="21">%s</text><text x="12" y="37">%s?</text>`+"\n",
		panelWidth, panelHeight, html.EscapeString(g.panel.Title), html.EscapeString(question))
	g.drawAxes(out)
	for _, s := range g.panel.FieldConfig.Defaults.Thresholds.Steps {
		if s.Value != nil && *s.Value < g.top && g.panel.FieldConfig.Defaults.Custom.ThresholdsStyle.Mode == "line" {
			y := g.y(*s.Value)
			fmt.Fprintf(out, `<path class="line dash" stroke="%s" d="M%d %.1fh%d"/>`+"\n", named[s.Color], graphLeft, y, graphWidth)
		}
	}
	for _, c := range g.curves {
		g.drawCurve(out, c)
	}
	g.drawLegend(out)
}

func (g *graph) x(t float64) float64 {
	begin := float64(g.from.UnixMilli()) / 1000
	return graphLeft + (t-begin)/g.to.Sub(g.from).Seconds()*graphWidth
}

func (g *graph) y(value float64) float64 {
	return graphTop + graphHeight - min(max(value/g.top, 0), 1)*graphHeight
}

func (g *graph) drawAxes(out *strings.Builder) {
	for i := range g.unit.ticks + 1 {
		value := g.top / float64(g.unit.ticks) * float64(i)
		y := g.y(value)
		fmt.Fprintf(out, `<path class="grid" d="M%d %.1fh%d"/><text class="num" x="%d" y="%.1f">%s</text>`, graphLeft, y, graphWidth, graphLeft-6, y+4, g.unit.text(value))
	}
	long := g.to.Sub(g.from)
	every := long.Round(time.Second)
	for _, candidate := range []time.Duration{time.Second, 5 * time.Second, 15 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour} {
		if long/candidate <= 6 {
			every = candidate
			break
		}
	}
	const bottom = graphTop + graphHeight
	for at := time.Duration(0); at <= long; at += every {
		x := graphLeft + float64(at)/float64(long)*graphWidth
		fmt.Fprintf(out, `<path class="axis" d="M%.1f %dv4"/><text class="time" x="%.1f" y="%d">%d:%02d</text>`, x, bottom, x, bottom+16, int(at.Minutes()), int(at.Seconds())%60)
	}
	fmt.Fprintf(out, `<path class="axis" d="M%d %dh%d"/>`+"\n", graphLeft, bottom, graphWidth)
}

// drawCurve draws a line with gaps where values are missing, and fills the area below it if it is stacked.
func (g *graph) drawCurve(out *strings.Builder, c curve) {
	class := "line"
	if c.limit {
		class = "line dash"
	}
	var line, floor []string
	flush := func() {
		if len(line) == 1 {
			line = append(line, line[0]) // a dot
		}
		if len(line) > 0 && g.stacked() {
			slices.Reverse(floor)
			fmt.Fprintf(out, `<path fill="%s" fill-opacity=".35" d="M%sL%sz"/>`, c.color, strings.Join(line, " "), strings.Join(floor, " "))
		}
		if len(line) > 0 {
			fmt.Fprintf(out, `<path class="%s" stroke="%s" d="M%s"/>`+"\n", class, c.color, strings.Join(line, " "))
		}
		line, floor = nil, nil
	}
	for i, p := range c.points {
		if i > 0 && p.Time-c.points[i-1].Time > 1.5*g.step.Seconds() {
			flush()
		}
		if math.IsNaN(p.Value) || math.IsInf(p.Value, 0) || g.stacked() && c.idle(i) {
			flush()
			continue
		}
		base := 0.0
		if g.stacked() {
			base = c.base[i]
		}
		line = append(line, fmt.Sprintf("%.0f,%.1f", g.x(p.Time), g.y(base+p.Value)))
		floor = append(floor, fmt.Sprintf("%.0f,%.1f", g.x(p.Time), g.y(base)))
	}
	flush()
}

// idle reports whether a curve is zero around a point: its line would hide that of the one below.
func (c curve) idle(i int) bool {
	for _, p := range c.points[max(i-1, 0):min(i+2, len(c.points))] {
		if p.Value != 0 {
			return false
		}
	}
	return true
}

// drawLegend names the curves on two lines, and counts those that have no room.
func (g *graph) drawLegend(out *strings.Builder) {
	const lines, room = 2, panelWidth - 24
	x, row, left := 0.0, 0, len(g.curves)
	for _, c := range g.curves {
		width := 15 + textWidth(c.name) + 12
		reserve := 0.0
		if row == lines-1 && (left > 1 || g.quiet > 0) {
			reserve = 135 // for the count
		}
		if x > 0 && x+width+reserve > room {
			if row == lines-1 {
				break
			}
			x, row = 0, row+1
		}
		g.drawKey(out, c, x+12, row)
		x += width
		left--
	}
	var rest []string
	if left > 0 {
		rest = append(rest, fmt.Sprintf("and %d more", left))
	}
	if g.quiet > 0 {
		rest = append(rest, fmt.Sprintf("%d at zero", g.quiet))
	}
	fmt.Fprintf(out, `<text x="%.0f" y="%d">%s</text>`+"\n", x+12, legendY(row), strings.Join(rest, ", "))
}

// textWidth is about how wide the small font is.
func textWidth(text string) (width float64) {
	for _, r := range text {
		if unicode.IsUpper(r) {
			width += 1.3
		}
		width += 6.4
	}
	return width
}

func legendY(row int) int { return graphTop + graphHeight + 37 + row*17 }

func (g *graph) drawKey(out *strings.Builder, c curve, x float64, row int) {
	y := legendY(row)
	if c.limit {
		fmt.Fprintf(out, `<path class="line dash" stroke="%s" d="M%.0f %dh11"/>`, c.color, x, y-4)
	} else {
		fmt.Fprintf(out, `<rect x="%.0f" y="%d" width="10" height="10" rx="2" fill="%s"/>`, x, y-9, c.color)
	}
	fmt.Fprintf(out, `<text x="%.0f" y="%d">%s</text>`, x+15, y, html.EscapeString(c.name))
}

// unit says how values on an axis are written.
type unit struct {
	scale  float64 // what one of it is
	suffix string
	ticks  int
}

// unitOf chooses one that suits the largest value.
func unitOf(name string, top float64) unit {
	choose := func(units ...unit) unit {
		u := units[0]
		for _, next := range units[1:] {
			if top >= next.scale {
				u = next
			}
		}
		return u
	}
	switch name {
	case seconds:
		return choose(unit{1e-6, " µs", 4}, unit{1e-3, " ms", 4}, unit{1, " s", 4}, unit{120, " s", 4}, unit{2 * hour, " h", 4}, unit{2 * day, " d", 4}).plain()
	case bytes, bytesPerSec:
		u := choose(unit{1, " B", 4}, unit{1 << 10, " KiB", 4}, unit{1 << 20, " MiB", 4}, unit{1 << 30, " GiB", 4})
		if name == bytesPerSec {
			u.suffix += "/s"
		}
		return u
	case share:
		return unit{0.01, "%", 4}
	case perSecond:
		return unit{1, " /s", 4}
	case boolean:
		return unit{1, "", 1}
	}
	return unit{1, "", 4}
}

// plain mends units that were chosen from a threshold other than one of them.
func (u unit) plain() unit {
	switch u.scale {
	case 120:
		u.scale = 1
	case 2 * hour:
		u.scale = hour
	case 2 * day:
		u.scale = day
	}
	return u
}

// round returns the top of an axis with this largest value: each tick is a number that is easy to read.
func (u unit) round(top float64) float64 {
	if top <= 0 {
		return u.scale
	}
	step := top / u.scale / float64(u.ticks)
	power := math.Pow(10, math.Floor(math.Log10(step)))
	for _, nice := range []float64{1, 2, 2.5, 5, 10} {
		if step <= nice*power*1.0001 {
			return nice * power * float64(u.ticks) * u.scale
		}
	}
	return top
}

func (u unit) text(value float64) string {
	return strings.TrimSuffix(fmt.Sprintf("%.4g", value/u.scale), ".0") + u.suffix
}
