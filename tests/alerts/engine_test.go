package alerts

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// Samples are a minute apart; expressions are evaluated at the last one, and values
// change three minutes before.
const (
	now     = 30
	changed = 27
)

// start is a moment at which minute 0 is: key times are in seconds since 1970.
func start() time.Time { return time.Unix(1_700_000_000, 0) }

// others are releases beside the one that the rules are for, as "namespace/job/name".
func others() []string {
	return []string{"elsewhere/vpn-gateway/vpn-gateway", "default/edge/vpn-gateway", "default/vpn-gateway/vpn-gateway-b", "default/vpn-gateway/b-vpn-gateway"}
}

// parse reads a line "[namespace/job/name] POD METRIC{LABELS} VALUE": a series of the
// Pod of that letter. VALUE is a number, or A→B that changes, or →B that begins.
func parse(t *testing.T, line string) storage.Series {
	t.Helper()
	fields := strings.Fields(line)
	release := "default/vpn-gateway/vpn-gateway"
	if len(fields) == 4 {
		release, fields = fields[0], fields[1:]
	}
	if len(fields) != 3 {
		t.Fatalf("%q is no line", line)
	}
	where := strings.Split(release, "/")
	metric, err := parser.NewParser(parser.Options{}).ParseMetric(fields[1])
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	b := labels.NewBuilder(metric)
	b.Set("namespace", where[0]).Set("job", where[1]).Set("pod", where[2]+"-6d4f5c7b9d-"+strings.Repeat(fields[0], 5))
	b.Set("instance", release+fields[0]) // what the rules do not know
	before, after, changes := strings.Cut(fields[2], "→")
	if !changes {
		after = before
	}
	var floats []promql.FPoint
	for minute := range now + 1 {
		text := before
		if minute >= changed {
			text = after
		}
		if text == "" {
			continue
		}
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		floats = append(floats, promql.FPoint{T: start().Add(time.Duration(minute) * time.Minute).UnixMilli(), F: value})
	}
	return promql.NewStorageSeries(promql.Series{Metric: b.Labels(), Floats: floats})
}

// evaluate returns what an expression is true of.
func evaluate(t *testing.T, expression string, lines []string) []labels.Labels {
	t.Helper()
	var all []storage.Series
	for _, line := range lines {
		all = append(all, parse(t, line))
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, LookbackDelta: 5 * time.Minute})
	defer engine.Close()
	held := &storage.MockQueryable{MockQuerier: &storage.MockQuerier{
		SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
			set := &seriesSet{}
			for _, s := range all {
				if matches(s.Labels(), matchers) {
					set.series = append(set.series, s)
				}
			}
			return set
		},
	}}
	query, err := engine.NewInstantQuery(t.Context(), held, nil, expression, start().Add(now*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer query.Close()
	result := query.Exec(context.WithoutCancel(t.Context()))
	if result.Err != nil {
		t.Fatalf("%s: %v", expression, result.Err)
	}
	vector, err := result.Vector()
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	var out []labels.Labels
	for _, s := range vector {
		out = append(out, s.Metric)
	}
	return out
}

func matches(l labels.Labels, matchers []*labels.Matcher) bool {
	for _, m := range matchers {
		if !m.Matches(l.Get(m.Name)) {
			return false
		}
	}
	return true
}

// short is the labels of an alert, less those that all of them have.
func short(l labels.Labels) string {
	var out []string
	l.Range(func(label labels.Label) {
		switch label.Name {
		case model.MetricNameLabel, "namespace", "job", "instance":
		case "pod":
			out = append(out, label.Value[len(label.Value)-1:])
		default:
			out = append(out, fmt.Sprintf("%s=%s", label.Name, label.Value))
		}
	})
	return strings.Join(out, " ")
}

type seriesSet struct {
	series []storage.Series
	next   int
}

// Next implements [storage.SeriesSet].
func (s *seriesSet) Next() bool { s.next++; return s.next <= len(s.series) }

// At implements [storage.SeriesSet].
func (s *seriesSet) At() storage.Series { return s.series[s.next-1] }

// Err implements [storage.SeriesSet].
func (s *seriesSet) Err() error { return nil }

// Warnings implements [storage.SeriesSet].
func (s *seriesSet) Warnings() annotations.Annotations { return nil }
