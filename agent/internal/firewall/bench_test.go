package firewall

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/plan"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/state"
)

// crowds are the configurations to measure: 10,000 peers that share a policy,
// and 10,000 with one each.
func crowds() map[string]func(*spec.Snapshot) {
	return map[string]func(*spec.Snapshot){"policy=shared": crowd(10000, 0), "policy=own": crowd(10000, 1)}
}

// bench runs f, b.N times over, inside a namespace of its own, and reports
// beside the time what this thread spent on a CPU: on a busy machine that is
// what to compare.
func bench(b *testing.B, want state.Firewall, f func(*Firewall, int) error) {
	b.Helper()
	need(b)
	newSpace(b).do(b, func() error {
		runtime.LockOSThread()
		fw, err := New(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		if err := fw.Apply(plan.Firewall{Replace: true, Desired: want}); err != nil {
			return err
		}
		runtime.GC()
		before := cpuTime()
		b.ResetTimer()
		for i := range b.N {
			if err := f(fw, i); err != nil {
				return err
			}
		}
		b.StopTimer()
		b.ReportMetric(float64((cpuTime()-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		return nil
	})
}

// cpuTime is what this thread has used.
func cpuTime() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_THREAD, &r) // cannot fail with this argument
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkApplyOne changes one peer of two addresses among 10,000: it goes, or
// comes back.
func BenchmarkApplyOne(b *testing.B) {
	for name, crowd := range crowds() {
		b.Run(name, func(b *testing.B) {
			all := state.Desired{Firewall: desired(snapshot(crowd))}
			var plans []plan.Firewall
			for _, name := range []string{"peer1", "peer5000", "peer9998", "peer1234", "peer8765"} {
				fewer := state.Desired{Firewall: desired(snapshot(func(s *spec.Snapshot) { crowd(s); s.Peers = except(s.Peers, name) }))}
				inPlace := state.Observed{FirewallInPlace: true}
				plans = append(plans, plan.Diff(fewer, inPlace, &all).Firewall, plan.Diff(all, inPlace, &fewer).Firewall)
			}
			bench(b, all.Firewall, func(fw *Firewall, i int) error {
				p := plans[i%len(plans)]
				if p.Replace || len(p.AddSources)+len(p.RemoveSources) != 2 {
					return fmt.Errorf("not the plan of one peer: %v %v", p.AddSources, p.RemoveSources)
				}
				return fw.Apply(p)
			})
		})
	}
}

// BenchmarkReplace makes the table of 10,000 peers anew.
func BenchmarkReplace(b *testing.B) {
	for name, crowd := range crowds() {
		b.Run(name, func(b *testing.B) {
			want := desired(snapshot(crowd))
			bench(b, want, func(fw *Firewall, _ int) error { return fw.Apply(plan.Firewall{Replace: true, Desired: want}) })
		})
	}
}

// BenchmarkInPlace looks after the table of 10,000 peers, while nobody changes
// any table, and while somebody does.
func BenchmarkInPlace(b *testing.B) {
	want := desired(snapshot(crowd(10000, 1)))
	same := func() error { return nil }
	changed := func() error {
		return commit(func(c *nftables.Conn) error {
			c.DelTable(c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: foreign}))
			return nil
		})
	}
	for name, meddle := range map[string]func() error{"ruleset=same": same, "ruleset=changed": changed} {
		b.Run(name, func(b *testing.B) {
			bench(b, want, func(fw *Firewall, _ int) error {
				b.StopTimer()
				if err := meddle(); err != nil {
					return err
				}
				b.StartTimer()
				in, err := fw.InPlace(want)
				if err == nil && !in {
					err = errors.New("not in place")
				}
				return err
			})
		})
	}
}
