package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/podrun"
)

// agentState is what the agent tells of its configuration in its metrics.
type agentState struct {
	generation float64
	reloaded   time.Time
}

// agent asks the agent of the Pod, from the control plane's network.
func (r *remote) agent(ctx context.Context) (agentState, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.pod.Status.PodIP+":8080/metrics", nil)
	if err != nil {
		return agentState{}, err
	}
	response, err := r.control.HTTPClient().Do(request)
	if err != nil {
		return agentState{}, err
	}
	defer response.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return agentState{}, fmt.Errorf("/metrics: %w", err)
	}
	gauge := func(name string) (float64, error) {
		metrics := families[name].GetMetric()
		if len(metrics) != 1 {
			return 0, fmt.Errorf("/metrics: %d of %s, want 1", len(metrics), name)
		}
		return metrics[0].GetGauge().GetValue(), nil
	}
	var s agentState
	seconds, err := gauge("vpn_gateway_config_last_reload_success_timestamp_seconds")
	if err != nil {
		return s, err
	}
	s.reloaded = time.UnixMicro(int64(seconds * 1e6))
	s.generation, err = gauge("vpn_gateway_config_generation")
	return s, err
}

// agentOf finds the agent's process of a Pod on this machine, on which all of the
// cluster's processes run: the one whose host name is the Pod's.
func agentOf(pod string) (int, error) {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, path := range found {
		command, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(command, []byte("/vpn-agent\x00gateway\x00")) {
			continue
		}
		dir := filepath.Dir(path)
		environ, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil {
			continue // it has just ended
		}
		for variable := range bytes.SplitSeq(environ, []byte{0}) {
			if string(variable) == "HOSTNAME="+pod {
				return strconv.Atoi(filepath.Base(dir))
			}
		}
	}
	return 0, errors.New("no process of Pod " + pod)
}

// describe says what a process may do.
func describe(s podrun.Status) string {
	text := fmt.Sprintf("uid %d with the capabilities %s", s.UIDs[1], strings.Join(s.Effective, ", "))
	switch len(s.Effective) {
	case 0:
		text = fmt.Sprintf("uid %d with no capability", s.UIDs[1])
	case 1:
		text = fmt.Sprintf("uid %d with the one capability %s", s.UIDs[1], s.Effective[0])
	}
	if s.NoNewPrivs {
		text += ", no new privileges"
	}
	for _, path := range []string{"/", "/proc/sys"} {
		if s.ReadOnly(path) {
			text += ", " + path + " read-only"
		}
	}
	return text
}
