// Package verbs drives a dialler by lines: a request in JSON on standard input, an answer in JSON on
// standard output, many at a time. What a verb does with a connection is the same for every dialler,
// so that the same test runs through all of them.
package verbs

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Dial opens one connection to "host:port" through whatever is tested.
type Dial func(ctx context.Context, target string) (net.Conn, error)

// Request is one line of standard input.
type Request struct {
	ID     int64  `json:"id"`
	Verb   string `json:"verb"`
	Target string `json:"target"`
	// Name of a connection that is kept open between requests.
	Name string `json:"name"`
	// Say is what is written, Want what must come back.
	Say  string `json:"say"`
	Want string `json:"want"`
	// Count of connections, and how many of them at a time.
	Count   int   `json:"count"`
	Workers int   `json:"workers"`
	Bytes   int64 `json:"bytes"`
	// DialMs ends the context of a dial; LimitMs ends the whole verb.
	DialMs  int `json:"dial_ms"`
	LimitMs int `json:"limit_ms"`
}

// Answer is one line of standard output.
type Answer struct {
	ID    int64   `json:"id"`
	Error string  `json:"error,omitempty"`
	Ms    float64 `json:"ms"`
	Good  int     `json:"good"`
	Bad   int     `json:"bad"`
	// Errors counts the texts of what went wrong.
	Errors map[string]int `json:"errors,omitempty"`
	// Sent and Received count bytes; WrongAt is the position of the first byte that is not the pattern's.
	Sent     int64  `json:"sent"`
	Received int64  `json:"received"`
	WrongAt  *int64 `json:"wrong_at,omitempty"`
	Text     string `json:"text,omitempty"`
	// End says how reading ended: "eof" or an error.
	End string `json:"end,omitempty"`
}

// driver holds what outlives one request.
type driver struct {
	dial Dial
	out  sync.Mutex
	held sync.Map // name -> net.Conn
}

// Serve answers requests until standard input ends.
func Serve(dial Dial) error {
	d := &driver{dial: dial}
	d.answer(Answer{Text: "ready"})
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	var running sync.WaitGroup
	for lines.Scan() {
		var request Request
		if err := json.Unmarshal(lines.Bytes(), &request); err != nil {
			return fmt.Errorf("%q: %w", lines.Text(), err)
		}
		running.Go(func() { d.attend(request) })
	}
	return lines.Err()
}

func (d *driver) answer(answer Answer) {
	line, err := json.Marshal(answer)
	if err != nil {
		line = fmt.Appendf(nil, `{"id":%d,"error":%q}`, answer.ID, err)
	}
	d.out.Lock()
	defer d.out.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

// attend runs one request within its limit: a dialler that hangs must not hang the test.
func (d *driver) attend(request Request) {
	limit := 20 * time.Second
	if request.LimitMs > 0 {
		limit = time.Duration(request.LimitMs) * time.Millisecond
	}
	start := time.Now()
	done := make(chan Answer, 1)
	go func() {
		answer, err := d.run(request)
		if err != nil {
			answer.Error = err.Error()
		}
		done <- answer
	}()
	var answer Answer
	select {
	case answer = <-done:
	case <-time.After(limit):
		answer.Error = fmt.Sprintf("%s: not done within %v", request.Verb, limit)
	}
	answer.ID = request.ID
	answer.Ms = float64(time.Since(start).Microseconds()) / 1000
	d.answer(answer)
}

func (d *driver) run(request Request) (Answer, error) {
	switch request.Verb {
	case "dial":
		return d.each(request, func(net.Conn) error { return nil })
	case "ask":
		return d.each(request, request.ask)
	case "hear":
		return d.each(request, request.hear)
	case "many":
		return d.many(request)
	case "down", "up", "both":
		return d.transfer(request)
	case "half":
		return d.half(request)
	case "open":
		conn, err := d.connect(request)
		if err == nil {
			d.held.Store(request.Name, conn)
		}
		return Answer{}, err
	}
	held, ok := d.held.Load(request.Name)
	if !ok {
		return Answer{}, fmt.Errorf("%s: no connection is called %q", request.Verb, request.Name)
	}
	conn := held.(net.Conn)
	switch request.Verb {
	case "write":
		n, err := io.WriteString(conn, request.Say)
		return Answer{Sent: int64(n)}, err
	case "read":
		text := make([]byte, request.Bytes)
		n, err := io.ReadFull(conn, text)
		return Answer{Received: int64(n), Text: string(text[:n])}, err
	case "rest":
		text, err := io.ReadAll(conn)
		return Answer{Received: int64(len(text)), Text: string(text), End: end(err)}, nil
	case "close-write":
		return Answer{}, closeWrite(conn)
	case "close":
		d.held.Delete(request.Name)
		return Answer{}, conn.Close()
	}
	return Answer{}, fmt.Errorf("no such verb: %q", request.Verb)
}

func (d *driver) connect(request Request) (net.Conn, error) {
	ctx := context.Background()
	if request.DialMs > 0 {
		bounded, cancel := context.WithTimeout(ctx, time.Duration(request.DialMs)*time.Millisecond)
		defer cancel()
		ctx = bounded
	}
	return d.dial(ctx, request.Target)
}
