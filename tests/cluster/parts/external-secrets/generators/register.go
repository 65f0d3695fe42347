// Package register takes the place of External Secrets' own list of generators:
// the tests need none.
package register
