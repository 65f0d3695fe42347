package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// defaultConfigDir is where the chart mounts the configuration.
const defaultConfigDir = "/etc/vpn-gateway"

const dirHelp = "DIR is laid out as config/gateway.yaml, key/privateKey, psk/SECRET/PEER and peers.d/SECRET/*.yaml. " +
	"Without it, " + defaultConfigDir + " is taken where that exists, as in the gateway's own container."

// atMostDir is cobra.MaximumNArgs(1) with an error that says what the one is.
func atMostDir(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("%s takes one DIR, not %d", cmd.CommandPath(), len(args))
	}
	return nil
}

// dirOf returns the directory that args names or the default one.
func dirOf(args []string) (string, error) {
	switch {
	case len(args) > 0:
		return args[0], nil
	case isDir(defaultConfigDir):
		return defaultConfigDir, nil
	default:
		return "", errors.New("DIR is missing; give the configuration directory (" + defaultConfigDir + " does not exist here)")
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
