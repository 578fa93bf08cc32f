package integration_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/oz-instant/caddy-oz-instant/integration/caddybin"
)

// workflow is what decides how much harm a workflow of GitHub could do.
type workflow struct {
	On          yaml.Node         `yaml:"on"`
	Permissions map[string]string `yaml:"permissions"` // a word, such as write-all, is none
	Jobs        map[string]struct {
		Permissions map[string]string `yaml:"permissions"`
		Uses        string            `yaml:"uses"` // somebody else's workflow
		Steps       []struct {
			Uses string            `yaml:"uses"`
			With map[string]string `yaml:"with"`
			Run  string            `yaml:"run"`
			Env  map[string]string `yaml:"env"`
		} `yaml:"steps"`
	} `yaml:"jobs"`
}

// mayWrite are the jobs that may change something at GitHub, and what.
var mayWrite = map[string]map[string]string{
	"release.yml draft": {"contents": "write"},
}

var (
	// pinned is an action of GitHub itself at a commit, which nobody can move as a tag was moved in CVE-2025-30066.
	pinned = regexp.MustCompile(`^actions/[a-z-]+@[0-9a-f]{40}$`)
	// untrusted is text of somebody else that would be part of a script, as in ${{ github.event.issue.title }}. What a script needs
	// comes to it in variables.
	untrusted = regexp.MustCompile(`\$\{\{`)
	// secretExpr is a secret, or the job's token.
	secretExpr = regexp.MustCompile(`\bsecrets\b|github\.token`)
	// yamlComment is what a reader is told.
	yamlComment = regexp.MustCompile(`(?m)(^|\s)#.*$`)
)

// TestWorkflows promises that nobody else's change of an action, and no pull request, gets at what may write to the repository.
func TestWorkflows(t *testing.T) {
	t.Parallel()
	root, err := caddybin.Root()
	check(t, err)
	files, err := filepath.Glob(filepath.Join(root, ".github", "workflows", "*"))
	check(t, err)
	allowed := 0
	for _, file := range files {
		name := filepath.Base(file)
		text, err := os.ReadFile(file)
		check(t, err)
		var w workflow
		if err := yaml.Unmarshal(text, &w); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, fault := range w.faults(name, string(text)) {
			t.Errorf("%s: %s", name, fault)
		}
		for job := range w.Jobs {
			if mayWrite[name+" "+job] != nil {
				allowed++
			}
		}
	}
	if allowed != len(mayWrite) {
		t.Error("the list of jobs that may write names one that there isn't")
	}
}

// faults returns what a workflow could be made to do harm by.
func (w *workflow) faults(name, text string) (found []string) {
	secrets := len(secretExpr.FindAllString(yamlComment.ReplaceAllString(text, ""), -1))
	for _, job := range w.Jobs {
		for _, step := range job.Steps {
			for _, value := range step.Env {
				secrets -= len(secretExpr.FindAllString(value, -1))
			}
		}
	}
	if secrets > 0 {
		found = append(found, "a secret stands elsewhere than in the env of a step")
	}
	if w.Permissions == nil {
		found = append(found, "it declares no permissions, so that its jobs get what the repository happens to give")
	}
	for scope, access := range w.Permissions {
		if access != "read" && access != "none" {
			found = append(found, "all of its jobs may "+access+" "+scope)
		}
	}
	for _, node := range w.On.Content {
		if node.Value == "pull_request_target" || node.Value == "workflow_run" {
			found = append(found, "on "+node.Value+" others' code runs with this repository's rights")
		}
	}
	for id, job := range w.Jobs {
		may := mayWrite[name+" "+id]
		for scope, access := range job.Permissions {
			if access != "read" && access != "none" && may[scope] != access {
				found = append(found, id+" may "+access+" "+scope)
			}
		}
		if job.Uses != "" {
			found = append(found, id+" is a workflow from elsewhere: "+job.Uses)
		}
		for i, step := range job.Steps {
			if step.Uses != "" && !pinned.MatchString(step.Uses) {
				found = append(found, id+" uses "+step.Uses+" (want one of GitHub's own, at a full commit)")
			}
			if strings.HasPrefix(step.Uses, "actions/checkout@") && step.With["persist-credentials"] != "false" {
				found = append(found, id+" leaves the token in the clone")
			}
			if untrusted.MatchString(step.Run) {
				found = append(found, id+" has an expression in a script (want a variable of env): "+step.Run)
			}
			for variable, value := range step.Env {
				if secretExpr.MatchString(value) && (may == nil || i != len(job.Steps)-1) {
					found = append(found, id+" has a secret in "+variable)
				}
			}
		}
	}
	return found
}

// TestWorkflowsFindsFaults shows the test above what it must notice.
func TestWorkflowsFindsFaults(t *testing.T) {
	t.Parallel()
	const good = `
on: {push: {tags: ["v*"]}}
permissions: {contents: read}
jobs:
  draft:
    permissions: {contents: write}
    steps:
      - uses: actions/checkout@11bd71901bbe5b1630ceea73d27597364c9af683
        with: {persist-credentials: false}
      - run: echo "$NAME"
      - run: gh release create
        env: {GH_TOKEN: "${{ github.token }}"}
`
	for fault, change := range map[string][2]string{
		"":                               {"", ""},
		"declares no":                    {"permissions: {contents: read}\n", ""},
		"all of its jobs":                {"{contents: read}", "{contents: write}"},
		"may write packages":             {"{contents: write}", "{contents: write, packages: write}"},
		"others' code":                   {`push: {tags: ["v*"]}`, "pull_request_target: "},
		"uses actions/checkout@":         {"11bd71901bbe5b1630ceea73d27597364c9af683", "v4"},
		"uses actions/checkout@11bd719 ": {"11bd71901bbe5b1630ceea73d27597364c9af683", "11bd719"},
		"uses someone/":                  {"actions/checkout@", "someone/checkout@"},
		"leaves the token":               {"persist-credentials: false", "fetch-depth: 0"},
		"an expression":                  {"$NAME", "${{ github.ref_name }}"},
		"a secret in GH_TOKEN":           {"  draft:", "  other:"},
		"a secret in NAME":               {"      - run: echo \"$NAME\"\n", "      - run: echo \"$NAME\"\n        env: {NAME: \"${{ secrets.NAME }}\"}\n"},
		"stands elsewhere":               {"on: ", "env: {NAME: \"${{ secrets.NAME }}\"}\non: "},
		"elsewhere than in the env":      {"persist-credentials: false", `persist-credentials: false, token: "${{ secrets['X'] }}"`},
	} {
		var w workflow
		text := strings.Replace(good, change[0], change[1], 1)
		check(t, yaml.Unmarshal([]byte(text), &w))
		found := strings.Join(w.faults("release.yml", text), "\n")
		if fault == "" && found != "" || fault != "" && !strings.Contains(found, fault) {
			t.Errorf("with %q instead of %q: %q, want %q", change[1], change[0], found, fault)
		}
	}
}
