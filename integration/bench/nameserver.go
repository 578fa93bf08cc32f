package main

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// Names that the name server knows, each with the records of those instances of Oz that are in.
const (
	ozName    = "oz.fleet.test."  // A
	ozService = "srv.fleet.test." // SRV; its targets have A records
)

// nameServer tells gateways which instances of Oz there are, as a registry of services does. A record lives for no time.
type nameServer struct {
	conn net.PacketConn
	port uint16 // of every instance, for SRV records

	mu        sync.Mutex
	instances map[string]netip.Addr // by the target's name
}

func startNameServer(port uint16) (*nameServer, error) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &nameServer{conn: conn, port: port, instances: map[string]netip.Addr{}}
	go s.serve()
	return s, nil
}

func (s *nameServer) addr() string { return s.conn.LocalAddr().String() }

func (s *nameServer) close() error { return s.conn.Close() }

func (s *nameServer) add(target string, addr netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.instances[target] = addr
}

func (s *nameServer) remove(target string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.instances, target)
}

// serve ends with close. What is no question gets no answer.
func (s *nameServer) serve() {
	packet := make([]byte, 1<<16)
	for {
		n, client, err := s.conn.ReadFrom(packet)
		if err != nil {
			return
		}
		if answer, err := s.answer(packet[:n]); err == nil {
			s.conn.WriteTo(answer, client) // a client that gets nothing asks again
		}
	}
}

func (s *nameServer) answer(packet []byte) ([]byte, error) {
	var parser dnsmessage.Parser
	header, err := parser.Start(packet)
	if err != nil {
		return nil, err
	}
	question, err := parser.Question()
	if err != nil {
		return nil, err
	}
	answers, known := s.records(question)
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: header.ID, Response: true, Authoritative: true, RecursionDesired: header.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{question}, Answers: answers,
	}
	if !known {
		reply.RCode = dnsmessage.RCodeNameError
	}
	return reply.Pack()
}

// records returns the answers to a question, and whether the name is known: one that has no records of that type is known, too.
func (s *nameServer) records(q dnsmessage.Question) (answers []dnsmessage.Resource, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	resource := func(body dnsmessage.ResourceBody) dnsmessage.Resource {
		return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET}, Body: body}
	}
	name := q.Name.String()
	targets := slices.Sorted(maps.Keys(s.instances))
	switch name {
	case ozService:
		for _, target := range targets {
			answers = append(answers, resource(&dnsmessage.SRVResource{Port: s.port, Target: dnsmessage.MustNewName(target)}))
		}
		return ofType(answers, q.Type, dnsmessage.TypeSRV), true
	case ozName:
		for _, target := range targets {
			answers = append(answers, resource(&dnsmessage.AResource{A: s.instances[target].As4()}))
		}
		return ofType(answers, q.Type, dnsmessage.TypeA), true
	}
	if addr, found := s.instances[name]; found {
		return ofType([]dnsmessage.Resource{resource(&dnsmessage.AResource{A: addr.As4()})}, q.Type, dnsmessage.TypeA), true
	}
	return nil, false
}

func ofType(answers []dnsmessage.Resource, asked, has dnsmessage.Type) []dnsmessage.Resource {
	if asked != has {
		return nil
	}
	return answers
}
