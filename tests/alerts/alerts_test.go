// Package alerts holds the alerts of the chart against Prometheus's own code: the
// parser of its rules, and the engine that evaluates them. It is a module of its own
// because the project needs nothing else of Prometheus's server.
//
// What it reads are the golden files of tests/chart, which that package compares
// with what is rendered, and docs/metrics.md, which is made from what the agent has.
package alerts

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

const (
	golden = "../chart/testdata/golden"
	docs   = "../../docs"
)

// scope are the labels by which a rule has to pick the Pods of its release: what
// Prometheus's operator gives to every target.
func scope() []string { return []string{"namespace", "job", "pod"} }

// groups reads the rules in a golden file as Prometheus does: unknown fields, faults
// of expressions and of templates are errors.
func groups(t *testing.T, file string) []rulefmt.RuleGroup {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(golden, file))
	if err != nil {
		t.Fatal(err)
	}
	var out []rulefmt.RuleGroup
	for _, document := range regexp.MustCompile(`(?m)^---\s*$`).Split(string(text), -1) {
		var object struct {
			Kind string
			Spec any
		}
		if err := yaml.Unmarshal([]byte(document), &object); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if object.Kind != "PrometheusRule" {
			continue
		}
		spec, err := yaml.Marshal(object.Spec)
		if err != nil {
			t.Fatal(err)
		}
		parsed, faults := rulefmt.Parse(spec, false, model.LegacyValidation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
		for _, fault := range faults {
			t.Errorf("%s: %v", file, fault)
		}
		if parsed != nil {
			out = append(out, parsed.Groups...)
		}
	}
	return out
}

// catalogue returns the labels of each metric of the agent, by its name.
func catalogue(t *testing.T) map[string][]string {
	t.Helper()
	const file = "metrics.md"
	text, err := os.ReadFile(filepath.Join(docs, file))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| (?:gauge|counter|histogram) \\| ([^|]*) \\|").FindAllStringSubmatch(string(text), -1) {
		out[row[1]] = []string{}
		for _, label := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(row[2], -1) {
			out[row[1]] = append(out[row[1]], label[1])
		}
	}
	if len(out) < 40 {
		t.Fatalf("%d metrics in %s, want at least 40", len(out), file)
	}
	return out
}

// faults says what an expression asks for that the agent does not have; and, where
// needed names labels, which metrics it asks for without these.
func faults(known map[string][]string, expression string, needed ...string) []string {
	root, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	targets := append(scope(), "instance")
	seen := slices.Clone(targets) // and what the metrics of the expression have
	parser.Inspect(root, func(node parser.Node, _ []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		has, ok := known[selector.Name]
		if !ok {
			out = append(out, "no metric "+selector.Name)
		}
		seen = append(seen, has...)
		var matched []string
		for _, m := range selector.LabelMatchers {
			matched = append(matched, m.Name)
			if m.Name != model.MetricNameLabel && !slices.Contains(slices.Concat(targets, has), m.Name) {
				out = append(out, fmt.Sprintf("%s has no label %s", selector.Name, m.Name))
			}
		}
		for _, label := range needed {
			if !slices.Contains(matched, label) {
				out = append(out, fmt.Sprintf("%s of whatever %s", selector.Name, label))
			}
		}
		return nil
	})
	parser.Inspect(root, func(node parser.Node, _ []parser.Node) error {
		var named []string
		switch n := node.(type) {
		case *parser.AggregateExpr:
			named = n.Grouping
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				named = slices.Concat(n.VectorMatching.MatchingLabels, n.VectorMatching.Include)
			}
		}
		for _, label := range named {
			if !slices.Contains(seen, label) {
				out = append(out, "nothing has a label "+label)
			}
		}
		return nil
	})
	return out
}

// Every expression asks for metrics and labels that the agent has, of the release's
// Pods alone.
func TestExpressions(t *testing.T) {
	known := catalogue(t)
	for file, least := range map[string]int{"alerts.yaml": 16, "production.yaml": 14} {
		n := 0
		for _, group := range groups(t, file) {
			for _, rule := range group.Rules {
				n++
				for _, fault := range faults(known, rule.Expr, scope()...) {
					t.Errorf("%s: %s: %s\n%s", file, rule.Alert, fault, rule.Expr)
				}
			}
		}
		if n < least {
			t.Errorf("%s: %d rules, want at least %d", file, n, least)
		}
	}
}

// So do the queries that the documentation has in tables.
func TestDocumentedQueries(t *testing.T) {
	known := catalogue(t)
	for file, heading := range map[string]string{"metrics.md": "## Queries", "high-availability.md": "## What to watch"} {
		text, err := os.ReadFile(filepath.Join(docs, file))
		if err != nil {
			t.Fatal(err)
		}
		_, section, _ := strings.Cut(string(text), heading+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		rows := regexp.MustCompile("(?m)^\\|.*\\| `(.*)` \\|$").FindAllStringSubmatch(section, -1)
		if len(rows) < 5 {
			t.Errorf("%s: %d queries in %q, want at least 5", file, len(rows), heading)
		}
		for _, row := range rows {
			for _, fault := range faults(known, strings.ReplaceAll(row[1], `\|`, "|")) {
				t.Errorf("%s: %s: %s", file, row[1], fault)
			}
		}
	}
}

// The check above finds what it is there to find.
func TestFaultsAreFound(t *testing.T) {
	known := catalogue(t)
	const pods = `namespace="a",job="b",pod="c"`
	for expression, want := range map[string]string{
		`vpn_gateway_ready{` + pods + `} == 0`:                                                 "",
		`vpn_gateway_raedy{` + pods + `} == 0`:                                                 "no metric vpn_gateway_raedy",
		`vpn_gateway_condition{` + pods + `,title="link"} == 0`:                                "vpn_gateway_condition has no label title",
		`vpn_gateway_ready{namespace="a",job="b"} == 0`:                                        "vpn_gateway_ready of whatever pod",
		`sum by (reason) (vpn_gateway_condition{` + pods + `}) > 0`:                            "nothing has a label reason",
		`vpn_gateway_ready{` + pods + `} > on (replica) vpn_gateway_moved_peers{` + pods + `}`: "nothing has a label replica",
		`vpn_gateway_ready{` + pods + ` == 0`:                                                  "unexpected",
	} {
		if got := strings.Join(faults(known, expression, scope()...), "; "); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: faults %q, want %q", expression, got, want)
		}
	}
}

// rulesByName are those of the golden file that has all of them.
func rulesByName(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	out := map[string]rulefmt.Rule{}
	for _, group := range groups(t, "alerts.yaml") {
		for _, rule := range group.Rules {
			out[rule.Alert] = rule
		}
	}
	return out
}

// Each alert fires where it should, says of what, and does not where it should not,
// whatever goes on in other releases.
func TestAlertsFire(t *testing.T) {
	rules := rulesByName(t)
	for _, c := range cases() {
		t.Run(c.alert, func(t *testing.T) {
			rule, ok := rules[c.alert]
			if !ok {
				t.Fatal("there is no such alert")
			}
			fired := evaluate(t, rule.Expr, c.fires)
			var got []string
			for _, l := range fired {
				got = append(got, short(l))
				for _, used := range regexp.MustCompile(`\$labels\.([a-z]+)`).FindAllStringSubmatch(rule.Annotations["summary"]+rule.Annotations["description"], -1) {
					if l.Get(used[1]) == "" {
						t.Errorf("an annotation names the label %s, and the alert has %s", used[1], l)
					}
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("with %q it fires for (-want +got):\n%s", c.fires, diff)
			}
			for _, quiet := range c.quiet {
				if fired := evaluate(t, rule.Expr, quiet); len(fired) > 0 {
					t.Errorf("with %q it fires for %s", quiet, fired)
				}
				all := slices.Clone(quiet)
				for _, line := range c.fires {
					for _, other := range others() {
						all = append(all, other+" "+line)
					}
				}
				if fired := evaluate(t, rule.Expr, all); len(fired) > 0 {
					t.Errorf("with %q in other releases it fires for %s", c.fires, fired)
				}
			}
			delete(rules, c.alert)
		})
	}
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		t.Errorf("no case shows that %s fires", name)
	}
}
