// Package register takes the place of External Secrets' own list of providers,
// which has forty: with the one that the tests need.
package register

import (
	_ "github.com/external-secrets/external-secrets/pkg/provider/kubernetes" // registers itself
)
