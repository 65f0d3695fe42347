package main

import (
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
)

func TestReadinessFlags(t *testing.T) {
	for args, want := range map[string][]string{
		"":                                    nil,
		"--readiness-gate --pod-namespace=b":  nil,
		"--readiness-gate":                    {"--pod-namespace is empty"},
		"--readiness-gate --readiness-lease=": {"--pod-namespace is empty", "--readiness-lease is empty"},
	} {
		o := readinessOptions{podName: "a", hasFleet: true}
		flags := pflag.NewFlagSet("gateway", pflag.ContinueOnError)
		o.register(flags)
		if err := flags.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		err := o.check()
		if (err == nil) != (want == nil) {
			t.Errorf("%s: error %v, want %q", args, err, want)
		}
		for _, text := range want {
			if err != nil && !strings.Contains(err.Error(), text) {
				t.Errorf("%s: error %q lacks %q", args, err, text)
			}
		}
	}
}

// Off, nothing is started, and nothing has to be waited for; outside of a Pod the
// error says what is missing.
func TestStartReadiness(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	done, err := startReadiness(t.Context(), readinessOptions{}, membership{}, log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	<-done
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	_, err = startReadiness(t.Context(), readinessOptions{enabled: true}, membership{}, log, prometheus.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "service account token") {
		t.Errorf("outside of a Pod: error %v, want one about the token", err)
	}
}
