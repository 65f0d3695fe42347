package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// What the project measures elsewhere, in virtual time or on a cluster, is in the table
// too. This file runs the commands that do, and takes the figures out of what they print.

// goTest runs tests of the project and returns what they printed.
func goTest(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, out.String())
	}
	return out.String(), nil
}

// convergence measures how soon the replicas of a large fleet know of a session.
func convergence(ctx context.Context, b *bench) ([]row, error) {
	b.progress("simulating 20 replicas with 10,000 peers")
	out, err := goTest(ctx, "-run", "^$", "-bench", "^BenchmarkConvergence$", "-benchtime", "1x", "./agent/internal/fleet")
	if err != nil {
		return nil, err
	}
	straight, err1 := metrics(out, "BenchmarkConvergence/straight")
	gossip, err2 := metrics(out, "BenchmarkConvergence/gossip")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	known := func(of map[string]float64) string {
		return fmt.Sprintf("%.0f ms / %.0f ms", of["p50-ms"], of["p99-ms"])
	}
	sent := func(of map[string]float64) string {
		return fmt.Sprintf("%.1f kB", (of["straight-B/s"]+of["gossip-B/s"]+of["comparing-B/s"])/1000)
	}
	return []row{
		{
			what: "20 replicas with 10,000 peers that shake hands every 120 s, in virtual time: a session is known to the other replicas after, " +
				"p50 / p99 (peer, here and below: where gossip has to do, and no message goes straight to a sibling)",
			ours: known(straight), peer: known(gossip),
		},
		{
			what: fmt.Sprintf("… what a replica sends in a second (its table in whole has %.1f MB)", straight["table-B"]/1e6),
			ours: sent(straight), peer: sent(gossip),
		},
	}, nil
}

// metrics are what a Go benchmark has printed, by unit (https://go.dev/design/14313-benchmark-format).
func metrics(out, name string) (map[string]float64, error) {
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[0] != name && !strings.HasPrefix(fields[0], name+"-") {
			continue
		}
		of := map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %q: %w", name, line, err)
			}
			of[fields[i+1]] = v
		}
		return of, nil
	}
	return nil, fmt.Errorf("%s: no such line in %q", name, out)
}

// scaledOut is the line of what the tests on a cluster sum up.
var scaledOut = regexp.MustCompile(`Autoscaling\s+(\d+) clients connected to scaled out \(periods of (\S+)\)\s+(\d+\.\d+) s`)

// autoscaling has a HorizontalPodAutoscaler scale a gateway on the project's own cluster.
func autoscaling(ctx context.Context, b *bench) ([]row, error) {
	b.progress("scaling out on a cluster of its own (it is built, once)")
	out, err := goTest(ctx, "-tags", "e2e", "-count=1", "-v", "-timeout", "90m", "-run", "^TestCluster$/^Autoscaling$", "./tests/e2e")
	if err != nil {
		return nil, err
	}
	found := scaledOut.FindStringSubmatch(out)
	if found == nil {
		return nil, fmt.Errorf("no line like %s in what was printed:\n%s", scaledOut, out)
	}
	period, err1 := time.ParseDuration(found[2])
	took, err2 := time.ParseDuration(found[3] + "s")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return []row{{
		what: fmt.Sprintf("Three times as many connections as one replica is to have, %s, on a cluster: scaled out after "+
			"(the autoscaler looks every %s; WireGuard itself has no such metric)", found[1], period),
		ours: ms(took), peer: "none", goal: "≤ two periods", met: took <= 2*period,
	}}, nil
}
