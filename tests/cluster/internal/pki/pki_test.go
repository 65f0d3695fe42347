package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSign(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	made, err := NewAuthority("test-ca", now)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := LoadAuthority(made.Pair) // what was stored signs as well as what was made
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority("test-ca", now)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		request Request
		usage   x509.ExtKeyUsage
		host    string // that a server's certificate must be good for
	}{
		{"client", Request{Name: "system:node:n1", Groups: []string{"system:nodes"}}, x509.ExtKeyUsageClientAuth, ""},
		{"server by name", Request{Name: "api", Hosts: []string{"kubernetes.default.svc"}}, x509.ExtKeyUsageServerAuth, "kubernetes.default.svc"},
		{"server by address", Request{Name: "api", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, x509.ExtKeyUsageServerAuth, "192.0.2.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pair, err := ca.Sign(tt.request, now)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tls.X509KeyPair(pair.Cert, pair.Key); err != nil {
				t.Errorf("key and certificate do not belong together: %v", err)
			}
			cert := parse(t, pair.Cert)
			for _, at := range []time.Time{now.Add(-59 * time.Minute), now, now.Add(300 * 24 * time.Hour)} {
				if _, err := cert.Verify(options(ca, tt.usage, tt.host, at)); err != nil {
					t.Errorf("at %s: %v", at, err)
				}
			}
			if _, err := cert.Verify(options(ca, tt.usage, tt.host, now.Add(validity+time.Hour))); err == nil {
				t.Error("valid for ever")
			}
			if _, err := cert.Verify(options(other, tt.usage, tt.host, now)); err == nil {
				t.Error("another authority of the same name vouches for it")
			}
			if cert.IsCA {
				t.Error("it may sign certificates")
			}
			if diff := cmp.Diff(tt.request.Groups, cert.Subject.Organization); diff != "" {
				t.Errorf("groups (-want +got):\n%s", diff)
			}
			if cert.Subject.CommonName != tt.request.Name {
				t.Errorf("name %q, want %q", cert.Subject.CommonName, tt.request.Name)
			}
		})
	}
}

func TestNewSigningKey(t *testing.T) {
	pair, err := NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := pem.Decode(pair.Cert)
	private, _ := pem.Decode(pair.Key)
	if public == nil || private == nil {
		t.Fatal("no PEM")
	}
	key, err := x509.ParseECPrivateKey(private.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	got, err := x509.ParsePKIXPublicKey(public.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if !key.PublicKey.Equal(got) {
		t.Error("the public key is another key's")
	}
}

func TestLoadAuthorityRefuses(t *testing.T) {
	if _, err := LoadAuthority(Pair{Cert: []byte("x"), Key: []byte("y")}); err == nil {
		t.Error("no error for what is no PEM")
	}
}

func parse(t *testing.T, cert []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(cert)
	if block == nil {
		t.Fatal("certificate: no PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func options(a *Authority, usage x509.ExtKeyUsage, host string, at time.Time) x509.VerifyOptions {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.Cert)
	return x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}, DNSName: host, CurrentTime: at}
}
