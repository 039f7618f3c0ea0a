package verbs

import (
	"fmt"
	"io"
	"net"
	"sync"
)

// maxTexts bounds the different error texts that one answer carries.
const maxTexts = 8

// tally counts results of many connections.
type tally struct {
	sync.Mutex
	answer Answer
}

func (t *tally) count(err error) {
	t.Lock()
	defer t.Unlock()
	if err == nil {
		t.answer.Good++
		return
	}
	t.answer.Bad++
	if t.answer.Errors == nil {
		t.answer.Errors = map[string]int{}
	}
	if _, known := t.answer.Errors[err.Error()]; known || len(t.answer.Errors) < maxTexts {
		t.answer.Errors[err.Error()]++
	}
}

// each opens Count connections, Workers at a time, works with each and closes it. With one
// connection its error is the answer's.
func (d *driver) each(request Request, work func(net.Conn) error) (Answer, error) {
	count, workers := max(request.Count, 1), max(request.Workers, 1)
	var total tally
	var running sync.WaitGroup
	next := make(chan struct{}, count)
	for range count {
		next <- struct{}{}
	}
	close(next)
	for range workers {
		running.Go(func() {
			for range next {
				total.count(d.once(request, work))
			}
		})
	}
	running.Wait()
	if count == 1 {
		for text := range total.answer.Errors {
			return total.answer, fmt.Errorf("%s", text)
		}
	}
	return total.answer, nil
}

func (d *driver) once(request Request, work func(net.Conn) error) error {
	conn, err := d.connect(request)
	if err != nil {
		return err
	}
	if err := work(conn); err != nil {
		conn.Close()
		return err
	}
	return closed(conn)
}

// closed ends a connection in order. The tunnel's reader hands CLOSE_RSP over and then ends; a closer that is
// woken late finds both and picks one at random, so "tunnel closed" is no failure here. "close timeout" is.
func closed(conn net.Conn) error {
	if err := conn.Close(); err != nil && err.Error() != "tunnel closed" {
		return err
	}
	return nil
}

// ask writes Say and wants it back, or Want.
func (r Request) ask(conn net.Conn) error {
	if _, err := io.WriteString(conn, r.Say); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	want := r.Want
	if want == "" {
		want = r.Say
	}
	return Request{Want: want}.hear(conn)
}

// hear writes nothing and wants Want.
func (r Request) hear(conn net.Conn) error {
	text := make([]byte, len(r.Want))
	n, err := io.ReadFull(conn, text)
	if err != nil {
		return fmt.Errorf("read, after %d bytes: %w", n, err)
	}
	if string(text) != r.Want {
		return fmt.Errorf("heard %q", text)
	}
	return nil
}

// many holds Count connections open at the same time, then asks on each of them.
func (d *driver) many(request Request) (Answer, error) {
	var total tally
	var opened, asked sync.WaitGroup
	conns := make([]net.Conn, max(request.Count, 1))
	for i := range conns {
		opened.Go(func() {
			conn, err := d.connect(request)
			if err != nil {
				total.count(err)
				return
			}
			conns[i] = conn
		})
	}
	opened.Wait()
	for _, conn := range conns {
		if conn != nil {
			asked.Go(func() { total.count(request.ask(conn)) })
		}
	}
	asked.Wait()
	for _, conn := range conns {
		if conn != nil {
			conn.Close()
		}
	}
	return total.answer, nil
}

// transfer moves Bytes of the pattern: "down" reads them from a target that sends by itself, "up" writes
// them to one that reads and then ends the connection, "both" does it at once with one that echoes.
func (d *driver) transfer(request Request) (Answer, error) {
	conn, err := d.connect(request)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	var answer Answer
	sent := make(chan error, 1)
	go func() {
		if request.Verb == "down" {
			sent <- nil
			return
		}
		n, err := send(conn, request.Bytes)
		answer.Sent = n
		sent <- err
	}()
	var got check
	switch request.Verb {
	case "up":
		if err := <-sent; err != nil {
			return answer, fmt.Errorf("write, after %d bytes: %w", answer.Sent, err)
		}
		return answer, closed(conn)
	case "down":
		_, err = io.Copy(&got, conn)
		answer.End = end(err)
	default:
		_, err = io.CopyN(&got, conn, request.Bytes)
		answer.End = end(err)
		if err == nil {
			answer.End = ""
		}
	}
	answer.Received, answer.WrongAt = got.at, got.wrong
	if err != nil {
		return answer, fmt.Errorf("read, after %d bytes: %w", got.at, err)
	}
	if err := <-sent; err != nil {
		return answer, fmt.Errorf("write, after %d bytes: %w", answer.Sent, err)
	}
	return answer, nil
}

// half writes Say, ends its own direction and reads what the target has to say after that.
func (d *driver) half(request Request) (Answer, error) {
	return d.gather(request, func(conn net.Conn) (Answer, error) {
		if _, err := io.WriteString(conn, request.Say); err != nil {
			return Answer{}, err
		}
		if err := closeWrite(conn); err != nil {
			return Answer{}, err
		}
		text, err := io.ReadAll(conn)
		return Answer{Received: int64(len(text)), Text: string(text), End: end(err)}, nil
	})
}

// gather does it Count times; good are those whose text is Want. The last answer is given.
func (d *driver) gather(request Request, work func(net.Conn) (Answer, error)) (Answer, error) {
	var total tally
	var last Answer
	for range max(request.Count, 1) {
		err := d.once(request, func(conn net.Conn) error {
			answer, err := work(conn)
			last = answer
			if err == nil && answer.Text != request.Want {
				err = fmt.Errorf("heard %q, then %s", answer.Text, answer.End)
			}
			return err
		})
		total.count(err)
	}
	last.Good, last.Bad, last.Errors = total.answer.Good, total.answer.Bad, total.answer.Errors
	return last, nil
}

func end(err error) string {
	if err == nil {
		return "eof"
	}
	return err.Error()
}

func closeWrite(conn net.Conn) error {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("this dialler's connections cannot be half closed")
	}
	return half.CloseWrite()
}
