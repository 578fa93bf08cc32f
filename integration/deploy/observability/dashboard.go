// Package observability makes the Grafana dashboard of oz_instant, and draws it without a Grafana. The alert rules for Prometheus
// are beside it.
package observability

import (
	"encoding/json"
	"strings"
)

// Dashboard is Grafana's model of a dashboard, as far as it is used here. It can be imported by Grafana 10 and newer.
type Dashboard struct {
	Annotations struct {
		List []any `json:"list"`
	} `json:"annotations"`
	Description   string     `json:"description"`
	Editable      bool       `json:"editable"`
	GraphTooltip  int        `json:"graphTooltip"`
	Links         []any      `json:"links"`
	Panels        []Panel    `json:"panels"`
	Refresh       string     `json:"refresh"`
	SchemaVersion int        `json:"schemaVersion"`
	Tags          []string   `json:"tags"`
	Templating    templating `json:"templating"`
	Time          timeRange  `json:"time"`
	Timezone      string     `json:"timezone"`
	Title         string     `json:"title"`
	UID           string     `json:"uid"`
}

type templating struct {
	List []variable `json:"list"`
}

type variable struct {
	Name       string      `json:"name"`
	Label      string      `json:"label"`
	Type       string      `json:"type"`
	Datasource *datasource `json:"datasource,omitempty"`
	Query      any         `json:"query"`
	Definition string      `json:"definition,omitempty"`
	AllValue   string      `json:"allValue,omitempty"`
	IncludeAll bool        `json:"includeAll"`
	Multi      bool        `json:"multi"`
	Refresh    int         `json:"refresh"`
	Sort       int         `json:"sort"`
	Current    *choice     `json:"current,omitempty"`
}

// choice is what is chosen of a variable at first.
type choice struct {
	Text  []string `json:"text"`
	Value []string `json:"value"`
}

type timeRange struct {
	From string `json:"from"`
	To   string `json:"to"`
}

type datasource struct {
	Type string `json:"type"`
	UID  string `json:"uid"`
}

// Panel is a graph, or the heading of a row.
type Panel struct {
	ID          int          `json:"id"`
	Type        string       `json:"type"` // timeseries or row
	Title       string       `json:"title"`
	Description string       `json:"description,omitempty"`
	GridPos     gridPos      `json:"gridPos"`
	Collapsed   *bool        `json:"collapsed,omitempty"`
	Panels      *[]Panel     `json:"panels,omitempty"`
	Datasource  *datasource  `json:"datasource,omitempty"`
	Targets     []Target     `json:"targets,omitempty"`
	FieldConfig *fieldConfig `json:"fieldConfig,omitempty"`
	Options     *options     `json:"options,omitempty"`
}

type gridPos struct {
	H int `json:"h"`
	W int `json:"w"`
	X int `json:"x"`
	Y int `json:"y"`
}

// Target is a query of a panel.
type Target struct {
	RefID        string     `json:"refId"`
	Datasource   datasource `json:"datasource"`
	Expr         string     `json:"expr"`
	LegendFormat string     `json:"legendFormat"`
	EditorMode   string     `json:"editorMode"`
	Range        bool       `json:"range"`
}

type fieldConfig struct {
	Defaults  defaults   `json:"defaults"`
	Overrides []override `json:"overrides"`
}

type defaults struct {
	Unit       string     `json:"unit"`
	Min        *float64   `json:"min,omitempty"`
	Color      color      `json:"color"`
	Thresholds thresholds `json:"thresholds"`
	Custom     custom     `json:"custom"`
}

type color struct {
	Mode string `json:"mode"`
}

type thresholds struct {
	Mode  string `json:"mode"`
	Steps []step `json:"steps"`
}

type step struct {
	Color string   `json:"color"`
	Value *float64 `json:"value"` // null: from the bottom
}

type custom struct {
	DrawStyle       string `json:"drawStyle"`
	FillOpacity     int    `json:"fillOpacity"`
	LineWidth       int    `json:"lineWidth"`
	ShowPoints      string `json:"showPoints"`
	Stacking        mode   `json:"stacking"`
	ThresholdsStyle mode   `json:"thresholdsStyle"`
}

type mode struct {
	Group string `json:"group,omitempty"`
	Mode  string `json:"mode"`
}

type override struct {
	Matcher    matcher    `json:"matcher"`
	Properties []property `json:"properties"`
}

type matcher struct {
	ID      string `json:"id"`
	Options string `json:"options"`
}

type property struct {
	ID    string `json:"id"`
	Value any    `json:"value"`
}

type options struct {
	Legend  legendOptions  `json:"legend"`
	Tooltip tooltipOptions `json:"tooltip"`
}

type legendOptions struct {
	DisplayMode string   `json:"displayMode"`
	Placement   string   `json:"placement"`
	ShowLegend  bool     `json:"showLegend"`
	Calcs       []string `json:"calcs"`
}

type tooltipOptions struct {
	Mode string `json:"mode"`
	Sort string `json:"sort"`
}

var chosen = &datasource{"prometheus", "${datasource}"}

// New returns the dashboard.
func New() *Dashboard {
	d := &Dashboard{
		Description:   "Liveness checks by the Caddy module oz_instant: decisions, time, capacity, clients, the replay guard and the way to Oz.",
		Editable:      true,
		GraphTooltip:  1, // one crosshair for all panels
		Links:         []any{},
		Refresh:       "30s",
		SchemaVersion: 38, // of Grafana 10.0; newer ones convert it when they load it
		Tags:          []string{"caddy", "oz_instant"},
		Time:          timeRange{"now-3h", "now"},
		Timezone:      "browser",
		Title:         "oz_instant",
		UID:           "oz-instant",
	}
	d.Annotations.List = []any{}
	d.Templating.List = []variable{
		{Name: "datasource", Label: "Data source", Type: "datasource", Query: "prometheus", Refresh: 1},
		labelVariable("job", "Job", `label_values(caddy_oz_instant_in_flight, job)`),
		labelVariable("instance", "Gateway", `label_values(caddy_oz_instant_in_flight{job=~"$job"}, instance)`),
	}
	d.layOut(rows)
	return d
}

// labelVariable lets the reader choose values of a label. All are chosen at first.
func labelVariable(name, label, definition string) variable {
	return variable{
		Name: name, Label: label, Type: "query", Datasource: chosen,
		Query:      map[string]string{"query": definition, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
		Definition: definition, AllValue: ".+", IncludeAll: true, Multi: true,
		Refresh: 2, // with the time range
		Sort:    1,
		Current: &choice{[]string{"All"}, []string{"$__all"}},
	}
}

// Columns of Grafana's grid, and the size of a panel in it.
const columns, width, height = 24, 8, 8

// layOut puts three panels beside each other.
func (d *Dashboard) layOut(rows []row) {
	y, id := 0, 0
	for _, r := range rows {
		id++
		open := false
		d.Panels = append(d.Panels, Panel{
			ID: id, Type: "row", Title: r.title, GridPos: gridPos{1, columns, 0, y}, Collapsed: &open, Panels: &[]Panel{},
		})
		y++
		for i, p := range r.panels {
			id++
			d.Panels = append(d.Panels, p.graph(id, gridPos{height, width, i * width % columns, y + i*width/columns*height}))
		}
		y += (len(r.panels)*width + columns - 1) / columns * height
	}
}

func (p panel) graph(id int, at gridPos) Panel {
	zero := 0.0
	f := defaults{
		Unit: p.unit, Min: &zero, Color: color{"palette-classic"},
		Thresholds: p.thresholds(),
		Custom: custom{
			DrawStyle: "line", FillOpacity: 10, LineWidth: 1, ShowPoints: "auto",
			Stacking: mode{"A", "none"}, ThresholdsStyle: mode{Mode: "off"},
		},
	}
	if p.ends {
		f.Min = nil
	}
	if p.stacked {
		f.Custom.Stacking.Mode, f.Custom.FillOpacity = "normal", 40
	}
	if len(p.limits) > 0 {
		f.Custom.ThresholdsStyle.Mode = "line"
	}
	return Panel{
		ID: id, Type: "timeseries", Title: p.title, Description: p.answers + " " + p.todo, GridPos: at, Datasource: chosen,
		Targets:     p.targets(),
		FieldConfig: &fieldConfig{f, p.overrides()},
		Options: &options{
			legendOptions{"list", "bottom", true, []string{}},
			tooltipOptions{"multi", "desc"},
		},
	}
}

// limitsAreDashed draws the series that are limits as what they are.
var limitsAreDashed = override{
	matcher{"byRegexp", "/ limit$/"},
	[]property{
		{"custom.lineStyle", map[string]any{"fill": "dash", "dash": []int{8, 6}}},
		{"custom.fillOpacity", 0},
		{"color", map[string]string{"mode": "fixed", "fixedColor": "red"}},
	},
}

func (p panel) overrides() []override {
	list := []override{limitsAreDashed}
	for _, c := range p.colors {
		list = append(list, override{matcher{"byName", c[0]}, []property{{"color", map[string]string{"mode": "fixed", "fixedColor": c[1]}}}})
	}
	return list
}

func (p panel) thresholds() thresholds {
	t := thresholds{"absolute", []step{{Color: "green"}}}
	for _, l := range p.limits {
		if l.from == 0 {
			t.Steps[0].Color = l.color
			continue
		}
		t.Steps = append(t.Steps, step{l.color, &l.from})
	}
	return t
}

func (p panel) targets() (list []Target) {
	for i, q := range p.queries {
		list = append(list, Target{
			RefID: string(rune('A' + i)), Datasource: *chosen, LegendFormat: q.legend, EditorMode: "code", Range: true,
			Expr: strings.ReplaceAll(q.expr, "@", `job=~"$job", instance=~"$instance"`),
		})
	}
	return list
}

// legend shows the values of labels.
func legend(labels string) string {
	return "{{" + strings.ReplaceAll(labels, ", ", "}} {{") + "}}"
}

// JSON returns the dashboard as a file to import.
func (d *Dashboard) JSON() ([]byte, error) {
	var text strings.Builder
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(d)
	return []byte(text.String()), err
}
