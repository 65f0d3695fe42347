package clientconf

import (
	"fmt"
	"strings"

	"rsc.io/qr"
)

// quiet is the light margin in modules that scanners need (ISO/IEC 18004
// section 6.3.8).
const quiet = 4

// QR draws text as a QR code for a terminal, two modules a character, and
// returns it with its width in columns. It sets black on white by itself
// (ECMA-48 SGR 30 and 107), so that it can be scanned from dark and light
// terminals alike. The error says that the text is too long for any QR code
// (2,953 bytes); it does not quote it.
func QR(text string) (drawing string, columns int, err error) {
	// The lowest error correction: a screen has no stains, and a smaller code
	// fits into 80 columns.
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return "", 0, fmt.Errorf("no QR code holds %d bytes", len(text))
	}
	var b strings.Builder
	// Code.Black is false outside the code, which gives the margin.
	for y := -quiet; y < code.Size+quiet; y += 2 {
		b.WriteString("\x1b[30;107m")
		for x := -quiet; x < code.Size+quiet; x++ {
			b.WriteString(halfBlock(code.Black(x, y), code.Black(x, y+1)))
		}
		b.WriteString("\x1b[0m\n")
	}
	return b.String(), code.Size + 2*quiet, nil
}

func halfBlock(upper, lower bool) string {
	switch {
	case upper && lower:
		return "█"
	case upper:
		return "▀"
	case lower:
		return "▄"
	default:
		return " "
	}
}
