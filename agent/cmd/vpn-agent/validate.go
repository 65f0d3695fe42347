package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/spec"
	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/watch"
)

func newValidateCommand(env environment) *cobra.Command {
	return &cobra.Command{
		Use:   "validate [DIR]",
		Short: "Check a configuration directory and report every fault",
		Long: "Check the configuration directory DIR the way the gateway does, which refuses files with a fault and stays with " +
			"the last good ones.\n\n" +
			"Every fault is a line on standard error, with its file, line, field, value and fix; warnings are lines there too. " +
			"Without a fault a summary goes to standard output.\n\n" + dirHelp,
		Args: atMostDir,
		RunE: func(_ *cobra.Command, args []string) error {
			snapshot, dir, err := loadDir(env, args)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(env.Out, "valid: %s in %s\n", summary(snapshot), dir)
			return err
		},
	}
}

// loadDir reads and validates the directory that args names. Faults and
// warnings are printed; what is returned then only counts them.
func loadDir(env environment, args []string) (*spec.Snapshot, string, error) {
	dir, err := dirOf(args)
	if err != nil {
		return nil, "", err
	}
	files, err := watch.Read(dir)
	if err != nil {
		return nil, "", err
	}
	snapshot, err := spec.Load(files)
	if err != nil {
		return nil, "", printFaults(env, dir, err)
	}
	for _, w := range snapshot.Warnings {
		fmt.Fprintln(env.Err, "warning:", w)
	}
	return snapshot, dir, nil
}

func printFaults(env environment, dir string, err error) error {
	var faults spec.Faults
	if !errors.As(err, &faults) {
		return err
	}
	for _, f := range faults {
		fmt.Fprintln(env.Err, f)
	}
	return fmt.Errorf("%s in %s", count(len(faults), "fault"), dir)
}

func summary(s *spec.Snapshot) string {
	preshared := 0
	for _, p := range s.Peers {
		if !p.PresharedKey.IsZero() {
			preshared++
		}
	}
	parts := []string{count(len(s.Peers), "peer"), count(preshared, "pre-shared key")}
	if n := len(s.Warnings); n > 0 {
		parts = append(parts, count(n, "warning"))
	}
	return strings.Join(parts, ", ")
}

func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
