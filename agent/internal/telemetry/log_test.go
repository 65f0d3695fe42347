package telemetry

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/key"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// records parses a log and takes its times out.
func records(t *testing.T, log string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for line := range strings.Lines(log) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("not a JSON object: %v: %s", err, line)
		}
		if _, ok := r["time"]; !ok {
			t.Errorf("no time in %s", line)
		}
		delete(r, "time")
		out = append(out, r)
	}
	return out
}

func TestLoggerHidesKeys(t *testing.T) {
	private, preshared := key.GeneratePrivate(), key.GeneratePreshared()
	raw := private.Bytes()
	type foreign [key.Len]byte
	own := foreign(raw)
	tests := []struct {
		name string
		attr slog.Attr
		want any
	}{
		{"private key", slog.Any("a", private), key.Redacted},
		{"pre-shared key", slog.Any("a", preshared), key.Redacted},
		{"pointer to a key", slog.Any("a", &private), key.Redacted},
		{"text called privateKey", slog.String("privateKey", private.Reveal()), key.Redacted},
		{"text called PresharedKey", slog.String("PresharedKey", private.Reveal()), key.Redacted},
		{"text called psk", slog.String("psk", private.Reveal()), key.Redacted},
		{"array", slog.Any("a", raw), key.Redacted},
		{"slice", slog.Any("a", raw[:]), key.Redacted},
		{"type of others", slog.Any("a", own), key.Redacted},
		{"pointer to type of others", slog.Any("a", &own), key.Redacted},
		{"inside a group", slog.Group("g", "psk", private.Reveal()), map[string]any{"psk": key.Redacted}},
		{"public key", slog.Any("a", alice), aliceKey},
		{"other bytes", slog.Any("a", []byte{1, 2}), "AQI="},
		{"nothing", slog.Any("a", nil), nil},
		{"nil pointer", slog.Any("a", (*foreign)(nil)), nil},
		{"number", slog.Int("a", 7), 7.0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			NewLogger(&out, slog.LevelInfo).LogAttrs(t.Context(), slog.LevelInfo, "x", tt.attr)
			if diff := cmp.Diff(tt.want, records(t, out.String())[0][tt.attr.Key]); diff != "" {
				t.Errorf("value (-want +got):\n%s", diff)
			}
			for _, form := range []string{private.Reveal(), base64.RawStdEncoding.EncodeToString(raw[:]), fmt.Sprint(raw[0], ",", raw[1], ",", raw[2], ",", raw[3])} {
				if strings.Contains(out.String(), form) {
					t.Errorf("key material in %s", out.String())
				}
			}
		})
	}
}

func TestLoggerLevel(t *testing.T) {
	var out bytes.Buffer
	log := NewLogger(&out, slog.LevelWarn)
	log.Info("no")
	log.Warn("yes")
	if diff := cmp.Diff([]map[string]any{{"level": "WARN", "msg": "yes"}}, records(t, out.String())); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

func TestLogReload(t *testing.T) {
	fault := spec.Fault{File: "config/gateway.yaml", Line: 3, Path: "server.mtu", Value: "1", Problem: "out of range", Fix: "use more"}
	base := Reload{Hash: "0123456789ab", Generation: 3, Peers: 2, Took: 12 * time.Millisecond}
	with := func(change func(*Reload)) Reload { r := base; change(&r); return r }
	common := func(more map[string]any) []map[string]any {
		for k, v := range map[string]any{"hash": "0123456789ab", "generation": 3.0, "peers": 2.0, "durationMs": 12.0} {
			more[k] = v
		}
		return []map[string]any{more}
	}
	tests := []struct {
		name   string
		reload Reload
		want   []map[string]any
	}{
		{"good", with(func(r *Reload) { r.Changes = []string{"peer alice added"} }), common(map[string]any{
			"level": "INFO", "msg": "configuration reloaded", "changes": []any{"peer alice added"},
		})},
		{"measured", with(func(r *Reload) { r.Stages = []Stage{{"load", 1234567 * time.Nanosecond}, {"apply", 5 * time.Second}} }), common(map[string]any{
			"level": "INFO", "msg": "configuration reloaded", "changes": nil, "stagesMs": map[string]any{"load": 1.234, "apply": 5000.0},
		})},
		{"warnings", with(func(r *Reload) { r.Warnings = spec.Faults{fault} }), common(map[string]any{
			"level": "WARN", "msg": "configuration reloaded with warnings", "changes": nil,
			"warnings": []any{`config/gateway.yaml:3: server.mtu: "1": out of range; use more`},
		})},
		{"faults", with(func(r *Reload) { r.Err = fmt.Errorf("load: %w", spec.Faults{fault, fault}) }), common(map[string]any{
			"level": "ERROR", "msg": "reload failed, the last good configuration stays in force",
			"errors": []any{`config/gateway.yaml:3: server.mtu: "1": out of range; use more`, `config/gateway.yaml:3: server.mtu: "1": out of range; use more`},
		})},
		{"other error", with(func(r *Reload) { r.Err = errors.New("permission denied") }), common(map[string]any{
			"level": "ERROR", "msg": "reload failed, the last good configuration stays in force", "errors": []any{"permission denied"},
		})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			LogReload(NewLogger(&out, slog.LevelInfo), tt.reload)
			if diff := cmp.Diff(tt.want, records(t, out.String())); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLogEvents(t *testing.T) {
	here, there := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::1]:2")
	var out strings.Builder
	LogEvents(NewLogger(&out, slog.LevelInfo), []state.Event{
		{Kind: state.PeerConnected, PublicKey: alice, To: here},
		{Kind: state.PeerRoamed, PublicKey: alice, From: here, To: there},
		{Kind: state.PeerDisconnected, PublicKey: alice, To: there},
		{Kind: state.PeerDisconnected, PublicKey: bob},
	}, map[key.Public]string{alice: "alice"})
	want := []map[string]any{
		{"level": "INFO", "msg": "peer connected", "peer": "alice", "publicKey": aliceKey, "endpoint": "192.0.2.1:1"},
		{"level": "INFO", "msg": "peer roamed", "peer": "alice", "publicKey": aliceKey, "from": "192.0.2.1:1", "endpoint": "[2001:db8::1]:2"},
		{"level": "INFO", "msg": "peer disconnected", "peer": "alice", "publicKey": aliceKey, "endpoint": "[2001:db8::1]:2"},
		{"level": "INFO", "msg": "peer disconnected", "publicKey": bobKey, "endpoint": ""},
	}
	if diff := cmp.Diff(want, records(t, out.String())); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}
