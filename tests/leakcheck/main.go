// Command leakcheck fails when a private or pre-shared key of a test run stands
// in anything that the run left behind.
//
//	leakcheck -secrets FILE DIR…
//
// FILE lists the keys of the run, one in base64 a line, as testenv.RecordSecret
// writes them. Every regular file below each DIR is searched, whatever its type,
// for every key in the forms that programs print keys in (see forms.go).
package main

import (
	"bufio"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cloud-native-vpn/vpn-gateway/tests/internal/testenv"
)

func main() {
	err := run(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "leakcheck:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("leakcheck", flag.ContinueOnError)
	secretsFile := flags.String("secrets", os.Getenv(testenv.EnvSecrets), "`file` of the run's keys; default $"+testenv.EnvSecrets)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 {
		return errors.New("no directory to search; give the run's logs")
	}
	keys, err := readKeys(*secretsFile)
	if err != nil {
		return fmt.Errorf("-secrets: %w", err)
	}
	s := newSearcher(keys)
	var files, leaks int
	var size int64
	for _, dir := range flags.Args() {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			files++
			size += int64(len(content))
			for _, hit := range s.search(content) {
				leaks++
				// The line itself is not shown: this output is kept, too.
				fmt.Fprintf(out, "%s:%d: key number %d of the run, as %s\n", path, hit.line, hit.key+1, hit.form)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("searching %s: %w", dir, err)
		}
	}
	fmt.Fprintf(out, "leakcheck: %d keys searched in %d files (%d bytes): %d leaks\n", len(keys), files, size, leaks)
	if leaks > 0 {
		return fmt.Errorf("%d places hold key material", leaks)
	}
	if files == 0 {
		return errors.New("nothing was searched: the directories hold no file")
	}
	return nil
}

// readKeys returns the distinct keys of file. A run that recorded none is an
// error: a search for nothing finds nothing and would prove nothing.
func readKeys(file string) ([][]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var keys [][]byte
	seen := map[string]bool{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		key, err := base64.StdEncoding.DecodeString(lines.Text())
		if err != nil || len(key) != 32 {
			return nil, fmt.Errorf("%s:%d: not 32 bytes in base64", file, n)
		}
		if !seen[string(key)] {
			seen[string(key)] = true
			keys = append(keys, key)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s holds no key; did the run record them (testenv.RecordSecret)?", file)
	}
	return keys, nil
}
