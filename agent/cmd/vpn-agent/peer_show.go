package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/term"

	"github.com/cloud-native-vpn/vpn-gateway/agent/internal/clientconf"
)

// longestInterface is IFNAMSIZ-1 (linux/if.h): wg-quick names the interface
// after the file.
const longestInterface = 15

// showPeer hands the new client over, the one time that it is seen. Secrets go
// to standard output or to files, never to standard error.
func showPeer(env environment, o peerOptions, c clientconf.Client, secret string) error {
	columns, terminal := terminalWidth(env.Out)
	switch {
	case o.outputDir != "":
		return writePeer(env, o, c, secret)
	case o.output == "json":
		return encodePeer(env.Out, c)
	}
	if _, err := io.WriteString(env.Out, c.RevealConfig()); err != nil {
		return err
	}
	var h handover
	if !terminal {
		h.where = "Standard output has"
		if o.presharedKey {
			h.secret, h.manifest = secret, c.PresharedSecret(secret)
		}
		return explainPeer(env.Err, c, h)
	}
	if err := drawPeer(env.Out, o, c, columns); err != nil {
		return err
	}
	h.where = "Above is"
	if o.presharedKey {
		h.secret, h.manifest = secret, c.RevealPresharedSecret(secret)
	}
	return explainPeer(env.Out, c, h)
}

// terminalWidth returns the columns of a terminal; 0 where it does not say, as
// one that was just opened through kubectl.
func terminalWidth(out io.Writer) (columns int, terminal bool) {
	f, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		columns = 0
	}
	return columns, true
}

func drawPeer(out io.Writer, o peerOptions, c clientconf.Client, columns int) error {
	if o.noQR {
		return nil
	}
	drawing, width, err := clientconf.QR(c.RevealConfig())
	switch {
	case err != nil:
		drawing = "No QR code: " + err.Error() + ".\n"
	case columns != 0 && columns < width:
		drawing = fmt.Sprintf("No QR code: it takes %d columns, this terminal has %d.\n", width, columns)
	}
	_, err = fmt.Fprint(out, "\n"+drawing)
	return err
}

// handover is what explainPeer speaks of beside the client itself.
type handover struct {
	// where the client's file is, as the beginning of a sentence.
	where string
	// secret that the gateway reads pre-shared keys from, and its manifest;
	// both empty where nothing has to be applied.
	secret, manifest string
}

// explainPeer says what remains to be done.
func explainPeer(out io.Writer, c clientconf.Client, h handover) error {
	text := "\n" + h.where + " the file of " + c.Name + ", with its private key. It is stored nowhere: keep it now.\n"
	if len(c.Name) > longestInterface {
		text += fmt.Sprintf("wg-quick takes names of up to %d characters: call it something shorter than %s.conf.\n", longestInterface, c.Name)
	}
	if h.manifest != "" {
		text += "\nApply this, and list " + h.secret + " in presharedKeys.existingSecrets of the chart's values:\n\n" + h.manifest
	}
	text += "\nAdd this to the peers in the chart's values, and upgrade the release:\n\n" + c.Entry().PeersYAML()
	_, err := io.WriteString(out, text)
	return err
}

// peerJSON is the document of --output json.
type peerJSON struct {
	Name         string           `json:"name"`
	PublicKey    string           `json:"publicKey"`
	Config       string           `json:"config"`
	Peer         clientconf.Entry `json:"peer"`
	PresharedKey string           `json:"presharedKey,omitempty"`
}

func encodePeer(out io.Writer, c clientconf.Client) error {
	doc := peerJSON{Name: c.Name, PublicKey: c.PrivateKey.Public().String(), Config: c.RevealConfig(), Peer: c.Entry()}
	if !c.PresharedKey.IsZero() {
		doc.PresharedKey = c.PresharedKey.Reveal()
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(doc)
}

// writePeer writes the files of --output-dir and prints their names.
func writePeer(env environment, o peerOptions, c clientconf.Client, secret string) error {
	if err := os.MkdirAll(o.outputDir, 0o700); err != nil {
		return fmt.Errorf("--output-dir: %w", err)
	}
	files := []struct {
		suffix, content string
		mode            os.FileMode
	}{
		{".conf", c.RevealConfig(), 0o600},
		{".values.yaml", c.Entry().PeersYAML(), 0o644},
	}
	if o.presharedKey {
		files = append(files, files[0])
		files[2].suffix, files[2].content = ".secret.yaml", c.RevealPresharedSecret(secret)
	}
	for _, f := range files {
		path := filepath.Join(o.outputDir, c.Name+f.suffix)
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("--output-dir: %s is there already; remove it or choose another directory", path)
		}
	}
	for _, f := range files {
		path := filepath.Join(o.outputDir, c.Name+f.suffix)
		if err := writeNew(path, f.content, f.mode); err != nil {
			return fmt.Errorf("--output-dir: %w", err)
		}
		if _, err := fmt.Fprintln(env.Out, path); err != nil {
			return err
		}
	}
	return nil
}

// writeNew never overwrites, not even what came since we looked.
func writeNew(path, content string, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(content); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
