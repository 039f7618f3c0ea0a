// Command reusable dials with the newer konnectivity-client, whose one gRPC connection carries a stream
// for each dial. Driven by lines (see the package verbs).
//
//	reusable reusable SOCKET          one tunnel for all dials, made anew when it fails
//	reusable single SOCKET            this release's single-use tunnel
//	reusable reusable-tls HOST:PORT CA CERT KEY
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"sigs.k8s.io/apiserver-network-proxy/konnectivity-client/pkg/client"

	"towline.test/verbs"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "single":
		options := unix(args[1])
		return verbs.Serve(func(ctx context.Context, target string) (net.Conn, error) {
			tunnel, err := client.CreateSingleUseGrpcTunnelWithContext(ctx, context.Background(), args[1], options...)
			if err != nil {
				return nil, err
			}
			return tunnel.DialContext(ctx, "tcp", target)
		})
	case len(args) == 2 && args[0] == "reusable":
		shared := &shared{address: args[1], options: unix(args[1])}
		return verbs.Serve(shared.dial)
	case len(args) == 5 && args[0] == "reusable-tls":
		config, err := clientTLS(args[2], args[3], args[4])
		if err != nil {
			return err
		}
		shared := &shared{address: args[1], options: with(credentials.NewTLS(config))}
		return verbs.Serve(shared.dial)
	}
	return fmt.Errorf("usage: reusable single|reusable SOCKET | reusable-tls HOST:PORT CA CERT KEY")
}

func with(transport credentials.TransportCredentials) []grpc.DialOption {
	return []grpc.DialOption{grpc.WithBlock(), grpc.WithReturnConnectionError(),
		grpc.WithTimeout(30 * time.Second), grpc.WithTransportCredentials(transport)}
}

func unix(socket string) []grpc.DialOption {
	return append(with(insecure.NewCredentials()), grpc.WithContextDialer(
		func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}))
}

// shared is the tunnel of all dials.
type shared struct {
	sync.Mutex
	address string
	options []grpc.DialOption
	tunnel  client.ReusableTunnel
}

func (s *shared) dial(ctx context.Context, target string) (net.Conn, error) {
	tunnel, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	return tunnel.DialContext(ctx, "tcp", target)
}

func (s *shared) current(ctx context.Context) (client.ReusableTunnel, error) {
	s.Lock()
	defer s.Unlock()
	if s.tunnel == nil {
		tunnel, err := client.CreateGRPCTunnel(ctx, s.address, s.options...)
		if err != nil {
			return nil, err
		}
		s.tunnel = tunnel
	}
	return s.tunnel, nil
}

func clientTLS(ca, cert, key string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate", ca)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}, nil
}
