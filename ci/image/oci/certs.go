package oci

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// CACertificates returns Mozilla's root certificates as PEM, in the order of the
// pinned module golang.org/x/crypto/x509roots/fallback. They come from there and
// not from the building machine, whose bundle is a different one on every
// machine and would make the image's digest depend on it.
//
// Roots that Mozilla trusts only for certificates issued before some date are
// left out: PEM has no way to say so, and trusting less is the safe reading.
func CACertificates() ([]byte, error) {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		cert, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			return nil, fmt.Errorf("root certificate in the pinned bundle: %w", err)
		}
		fmt.Fprintf(&out, "# %s\n", cert.Subject)
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return nil, fmt.Errorf("encoding root certificate %s: %w", cert.Subject, err)
		}
	}
	return out.Bytes(), nil
}
