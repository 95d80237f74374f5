//! What the cores say, carried out: messages and transfers become events. Must not decide anything.

use super::*;

impl World {
    pub(super) fn drain(&mut self, id: usize) {
        while let Some(output) = self.nodes[id].download.poll_output() {
            self.download_says(id, output);
        }
        while let Some(output) = self.nodes[id].uploads.poll_output() {
            self.uploads_say(id, output);
        }
        let node = &self.nodes[id];
        let due = [node.download.next_deadline(), node.uploads.next_deadline()];
        if let Some(due) = due
            .into_iter()
            .flatten()
            .min()
            .map(|due| due.max(self.now + Duration::from_micros(1)))
            && self.nodes[id].timer.is_none_or(|at| at > due)
        {
            self.nodes[id].timer = Some(due);
            self.at(due, Event::Timer(id));
        }
    }

    fn download_says(&mut self, id: usize, output: download::Output) {
        let number = |world: &Self, name: &Name| world.numbers[name];
        match output {
            download::Output::Connect(peer) => {
                let peer = number(self, &peer);
                self.later(CONNECT, Event::Call(id, peer));
            }
            download::Output::Disconnect(peer) => {
                let peer = number(self, &peer);
                self.nodes[id].calls.remove(&peer);
                self.nodes[peer].uploads.handle_gone(self.now, id as u64);
            }
            download::Output::AskHave { peer, wait } => {
                let peer = number(self, &peer);
                self.later(LATENCY, Event::AskedHave(id, peer, wait));
            }
            download::Output::AskPeer { peer, chunk } => {
                let peer = number(self, &peer);
                self.later(LATENCY, Event::AskedChunk(id, peer, chunk));
            }
            download::Output::AskHead(chunk) => self.later(LATENCY, Event::HeadAsked(id, chunk)),
            download::Output::Wish {
                tickets,
                peers,
                starving,
                using,
            } => {
                let have = self.nodes[id].download.have().clone();
                let wish = Wish {
                    have,
                    tickets,
                    peers,
                    starving,
                    using,
                };
                self.later(LATENCY, Event::WishAtHead(id, wish));
            }
            download::Output::BadPeer { peer, .. } => {
                let peer = number(self, &peer);
                assert!(self.is_liar(peer), "{peer} is honest, seed {}", self.room.seed);
                self.later(LATENCY, Event::AccusedAtHead(id, peer));
            }
            download::Output::WrongFromHead(error) | download::Output::BadHead(error) => {
                panic!("the head is honest: {error}")
            }
            download::Output::Done => {
                self.nodes[id].finished = Some(self.now);
                let have = self.nodes[id].download.have().clone();
                let wish = Wish {
                    have,
                    tickets: 0,
                    peers: 0,
                    starving: false,
                    using: vec![],
                };
                self.later(LATENCY, Event::WishAtHead(id, wish));
            }
        }
    }

    fn uploads_say(&mut self, id: usize, output: serve::Output) {
        let have = self.nodes[id].uploads.have().as_bytes().to_vec();
        match output {
            serve::Output::Give { visitor, chunk } => {
                let node = &mut self.nodes[id];
                node.up_free = node.up_free.max(self.now) + transfer(WIRE_CHUNK, self.room.node_link);
                let (at, to) = (node.up_free, visitor as usize);
                self.at(
                    at,
                    Event::Left {
                        from: Some(id),
                        to,
                        chunk,
                        have,
                    },
                );
            }
            serve::Output::Have(visitor) => self.later(LATENCY, Event::Have(id, visitor as usize, have)),
            serve::Output::Busy { visitor, after } => {
                self.later(LATENCY, Event::Busy(id, visitor as usize, after))
            }
            serve::Output::Missing(visitor) => self.later(LATENCY, Event::Missing(id, visitor as usize)),
        }
    }

    pub(super) fn drain_head(&mut self) {
        let Some(head) = &mut self.head else {
            return;
        };
        let outputs: Vec<_> = std::iter::from_fn(|| head.poll_output()).collect();
        if self.head_timer.is_none() {
            let due = self.now + Duration::from_secs(1);
            self.head_timer = Some(due);
            self.at(due, Event::HeadTimer);
        }
        for output in outputs {
            let (tickets::Output::Tickets { node, .. } | tickets::Output::Peers { node, .. }) = &output;
            let node = *node;
            self.later(LATENCY, Event::FromHead(node, output));
        }
    }
}
