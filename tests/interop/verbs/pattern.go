package verbs

import (
	"bytes"
	"io"
	"sync"
)

// block is the length of the repeating pattern, chunk the most that is looked at in one piece. Both,
// and the bytes, are those of tests/src/pattern.rs.
const (
	block = 1_048_573
	chunk = 64 * 1024
)

var table = sync.OnceValue(func() []byte {
	state := uint64(0x9e37_79b9_7f4a_7c15)
	bytes := make([]byte, block, block+chunk)
	for i := range bytes {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		bytes[i] = byte(state >> 32)
	}
	return append(bytes, bytes[:chunk]...)
})

func pattern(at, length int64) []byte {
	start := at % block
	return table()[start : start+min(length, chunk)]
}

// send writes the first count bytes of the pattern.
func send(to io.Writer, count int64) (int64, error) {
	var at int64
	for at < count {
		n, err := to.Write(pattern(at, count-at))
		at += int64(n)
		if err != nil {
			return at, err
		}
	}
	return at, nil
}

// check compares what is written to it with the pattern.
type check struct {
	at    int64
	wrong *int64
}

func (c *check) Write(piece []byte) (int, error) {
	for rest := piece; len(rest) > 0; {
		now := rest[:min(len(rest), chunk)]
		want := pattern(c.at, int64(len(now)))
		if c.wrong == nil && !bytes.Equal(now, want) {
			at := c.at
			for i := range now {
				if now[i] != want[i] {
					at += int64(i)
					break
				}
			}
			c.wrong = &at
		}
		c.at += int64(len(now))
		rest = rest[len(now):]
	}
	return len(piece), nil
}
