// The suite with google.golang.org/grpc: `client SOCKET CASE...`, one JSON line per case.
package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	prefix  = "/conformance.Echo/"
	mib     = 1024 * 1024
	timeout = 20 * time.Second
)

// raw passes bytes through unchanged.
type raw struct{}

func (raw) Name() string { return "raw" }

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte{}, data...)
	return nil
}

var _ encoding.Codec = raw{}

type client struct{ conn *grpc.ClientConn }

func (c client) unary(ctx context.Context, name string, data []byte, opts ...grpc.CallOption) ([]byte, error) {
	var answer []byte
	err := c.conn.Invoke(ctx, prefix+name, &data, &answer, append(opts, grpc.ForceCodec(raw{}))...)
	return answer, err
}

func (c client) bidi(ctx context.Context, name string) (grpc.ClientStream, error) {
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	return c.conn.NewStream(ctx, desc, prefix+name, grpc.ForceCodec(raw{}))
}

func (c client) stats(ctx context.Context) (found map[string]int, err error) {
	answer, err := c.unary(ctx, "Stats", nil)
	if err != nil {
		return nil, err
	}
	return found, json.Unmarshal(answer, &found)
}

func (c client) waitFor(ctx context.Context, condition func(map[string]int) bool) error {
	for {
		found, err := c.stats(ctx)
		if err != nil {
			return err
		}
		if condition(found) {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (c client) echo(ctx context.Context, name string, data []byte) error {
	answer, err := c.unary(ctx, name, data)
	if err == nil && !bytes.Equal(answer, data) {
		err = fmt.Errorf("got %d bytes, sent %d", len(answer), len(data))
	}
	return err
}

func readAll(stream grpc.ClientStream) (found [][]byte, err error) {
	for {
		var data []byte
		if err := stream.RecvMsg(&data); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return found, err
		}
		found = append(found, data)
	}
}

func expectCode(err error, code codes.Code) error {
	if status.Code(err) != code {
		return fmt.Errorf("expected %v, got %v", code, err)
	}
	return nil
}

func caseUnary(ctx context.Context, c client) error {
	for _, data := range [][]byte{[]byte("hello"), {}, bytes.Repeat([]byte("abc"), 9000)} {
		if err := c.echo(ctx, "Unary", data); err != nil {
			return err
		}
	}
	return nil
}

func pingPong(ctx context.Context, c client, count int, message func(int) []byte) error {
	stream, err := c.bidi(ctx, "Stream")
	if err != nil {
		return err
	}
	for number := range count {
		sent := message(number)
		if err := stream.SendMsg(&sent); err != nil {
			return err
		}
		var got []byte
		if err := stream.RecvMsg(&got); err != nil {
			return err
		}
		if !bytes.Equal(sent, got) {
			return fmt.Errorf("message %d came back as %d bytes", number, len(got))
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	rest, err := readAll(stream)
	if err == nil && len(rest) > 0 {
		err = errors.New("messages that were not sent")
	}
	return err
}

func casePingPong(ctx context.Context, c client) error {
	return pingPong(ctx, c, 200, func(n int) []byte { return fmt.Appendf(nil, "message %d", n) })
}

func caseLarge(ctx context.Context, c client) error {
	data := bytes.Repeat([]byte("abcdefgh"), mib/8)
	if err := c.echo(ctx, "Unary", data); err != nil {
		return err
	}
	return pingPong(ctx, c, 4, func(int) []byte { return data })
}

func caseDeadline(ctx context.Context, c client) error {
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	_, err := c.unary(short, "Sleep", nil)
	if err := expectCode(err, codes.DeadlineExceeded); err != nil {
		return err
	}
	short, cancel = context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	stream, err := c.bidi(short, "Hang")
	if err != nil {
		return err
	}
	_, err = readAll(stream)
	if err := expectCode(err, codes.DeadlineExceeded); err != nil {
		return err
	}
	return c.waitFor(ctx, func(found map[string]int) bool { return found["hanging"] == 0 })
}

func caseCancel(ctx context.Context, c client) error {
	found, err := c.stats(ctx)
	if err != nil {
		return err
	}
	before := found["cancelled"]
	both, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := c.unary(both, "Sleep", nil)
		ended <- err
	}()
	stream, err := c.bidi(both, "Hang")
	if err != nil {
		cancel()
		return err
	}
	err = c.waitFor(ctx, func(found map[string]int) bool { return found["hanging"] == 2 })
	cancel()
	if err != nil {
		return err
	}
	if err := expectCode(<-ended, codes.Canceled); err != nil {
		return err
	}
	if _, err := readAll(stream); status.Code(err) != codes.Canceled {
		return fmt.Errorf("the stream ended with %v", err)
	}
	return c.waitFor(ctx, func(found map[string]int) bool {
		return found["cancelled"] == before+2 && found["hanging"] == 0
	})
}

func caseError(ctx context.Context, c client) error {
	text := "不行: é %41 100%\tend"
	_, err := c.unary(ctx, "Fail", []byte(text))
	if err := expectCode(err, codes.FailedPrecondition); err != nil {
		return err
	}
	if got := status.Convert(err).Message(); got != text {
		return fmt.Errorf("the message is %q", got)
	}
	_, err = c.unary(ctx, "Crash", nil)
	if strings.Contains(err.Error(), "secret") {
		return err
	}
	return expectCode(err, codes.Internal)
}

func caseUnknown(ctx context.Context, c client) error {
	_, err := c.unary(ctx, "Nothing", []byte("x"))
	if err := expectCode(err, codes.Unimplemented); err != nil {
		return err
	}
	stream, err := c.bidi(ctx, "Nothing")
	if err != nil {
		return err
	}
	_, err = readAll(stream)
	return expectCode(err, codes.Unimplemented)
}

func caseMetadata(ctx context.Context, c client) error {
	ctx = metadata.AppendToOutgoingContext(ctx,
		"x-text", "a b", "x-raw-bin", "\x00\xff\x01,", "x-raw-bin", "")
	answer, err := c.unary(ctx, "Metadata", nil)
	if err != nil {
		return err
	}
	var seen [][2]string
	if err := json.Unmarshal(answer, &seen); err != nil {
		return err
	}
	var text, binary []string
	for _, pair := range seen {
		switch pair[0] {
		case "x-text":
			text = append(text, pair[1])
		case "x-raw-bin":
			binary = append(binary, pair[1])
		}
	}
	want := hex.EncodeToString([]byte("\x00\xff\x01,"))
	if len(text) != 1 || text[0] != "a b" || len(binary) != 2 || binary[0] != want || binary[1] != "" {
		return fmt.Errorf("seen %s", answer)
	}
	return nil
}

func caseConcurrent(ctx context.Context, c client) error {
	for name, count := range map[string]int{"Barrier": 64, "Unary": 300} {
		errs := make([]error, count)
		var group sync.WaitGroup
		for number := range count {
			group.Add(1)
			go func() {
				defer group.Done()
				errs[number] = c.echo(ctx, name, fmt.Append(nil, number))
			}()
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

func caseHalfClose(ctx context.Context, c client) error {
	for _, messages := range [][][]byte{{[]byte("one"), []byte("two")}, {}} {
		stream, err := c.bidi(ctx, "Stream")
		if err != nil {
			return err
		}
		for _, data := range messages {
			if err := stream.SendMsg(&data); err != nil {
				return err
			}
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		got, err := readAll(stream)
		if err != nil {
			return err
		}
		if !bytes.Equal(bytes.Join(got, []byte("|")), bytes.Join(messages, []byte("|"))) {
			return fmt.Errorf("got %q", got)
		}
	}
	return nil
}

func caseStalled(ctx context.Context, c client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stalled, err := c.bidi(ctx, "Flood")
	if err != nil {
		return err
	}
	var first []byte
	if err := stalled.RecvMsg(&first); err != nil {
		return err
	}
	last := -1
	for {
		found, err := c.stats(ctx)
		if err != nil {
			return err
		}
		if found["flooded"] == last {
			break
		}
		last = found["flooded"]
		for number := range 50 {
			if err := c.echo(ctx, "Unary", fmt.Append(nil, number)); err != nil {
				return err
			}
		}
	}
	if last >= 16*mib {
		return fmt.Errorf("%d bytes for a peer that does not read", last)
	}
	return nil
}

func caseOversize(ctx context.Context, c client) error {
	data := make([]byte, 300*1024)
	_, err := c.unary(ctx, "Small", data)
	if err := expectCode(err, codes.ResourceExhausted); err != nil {
		return err
	}
	stream, err := c.bidi(ctx, "SmallStream")
	if err != nil {
		return err
	}
	if err := stream.SendMsg(&data); err != nil {
		return err
	}
	_, err = readAll(stream)
	if err := expectCode(err, codes.ResourceExhausted); err != nil {
		return err
	}
	return c.echo(ctx, "Unary", []byte("still here"))
}

func caseGzip(ctx context.Context, c client) error {
	_, err := c.unary(ctx, "Unary", make([]byte, 1000), grpc.UseCompressor(gzip.Name))
	return expectCode(err, codes.Unimplemented)
}

// caseKeepalive: the Go client does not ping more often than every 10 s.
func caseKeepalive(ctx context.Context, c client) error {
	stream, err := c.bidi(ctx, "Hang")
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		_, err := readAll(stream)
		ended <- err
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("the stream ended: %w", err)
	case <-time.After(11 * time.Second):
		return nil
	}
}

var cases = map[string]func(context.Context, client) error{
	"unary":             caseUnary,
	"bidi_ping_pong":    casePingPong,
	"large_message":     caseLarge,
	"deadline_exceeded": caseDeadline,
	"client_cancels":    caseCancel,
	"error_status":      caseError,
	"unknown_method":    caseUnknown,
	"metadata":          caseMetadata,
	"concurrent_64":     caseConcurrent,
	"half_close":        caseHalfClose,
	"stalled_reader":    caseStalled,
	"oversize_message":  caseOversize,
	"gzip_refused":      caseGzip,
	"keepalive":         caseKeepalive,
}

func run(socket, name string) error {
	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 300 * time.Millisecond}),
	)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if name == "hold" {
		stream, err := client{conn}.bidi(context.Background(), "Hang")
		if err != nil {
			return err
		}
		var data []byte
		for stream.RecvMsg(&data) == nil {
			fmt.Println("open")
		}
		return nil
	}
	return cases[name](ctx, client{conn})
}

func main() {
	for _, name := range os.Args[2:] {
		result := map[string]any{"case": name, "ok": true, "detail": ""}
		if err := run(os.Args[1], name); err != nil {
			result["ok"], result["detail"] = false, err.Error()
		}
		line, _ := json.Marshal(result)
		fmt.Println(string(line))
	}
}
