//! What a download does next, out of its state alone.

use super::*;

impl Download {
    /// After every event: gives up what took too long, and puts everybody who is idle to work.
    pub(super) fn act(&mut self, now: Duration) {
        if self.done {
            return;
        }
        if self.have.is_full() {
            self.done = true;
            let open = self
                .peers
                .iter()
                .filter(|(_, peer)| !matches!(peer.link, Link::Away { .. }));
            self.outputs
                .extend(open.map(|(name, _)| Output::Disconnect(Arc::clone(name))));
            self.outputs.push_back(Output::Done);
            return;
        }
        self.give_up(now);
        self.use_tickets(now);
        let names: Vec<Name> = self.peers.keys().cloned().collect();
        for name in names {
            self.use_peer(now, &name);
        }
        self.starve(now);
        self.wish(now);
    }

    fn give_up(&mut self, now: Duration) {
        let late = |link: Link| match link {
            Link::Calling { until } | Link::Asked { until, .. } | Link::Watched { until } => until <= now,
            _ => false,
        };
        let names: Vec<Name> = self
            .peers
            .iter()
            .filter(|(_, peer)| late(peer.link))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in names {
            self.outputs.push_back(Output::Disconnect(Arc::clone(&name)));
            self.lose(now, &name);
        }
        let late: Vec<u32> = self
            .from_head
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(chunk, _)| *chunk)
            .collect();
        for chunk in late {
            self.from_head.remove(&chunk);
            self.pending.remove(chunk);
            self.rest(now, None);
        }
        self.head_rest = self.head_rest.filter(|until| *until > now);
        self.tickets.retain(|(_, until)| *until > now);
    }

    /// Asks the head for what it allowed, unless it came another way.
    fn use_tickets(&mut self, now: Duration) {
        while self.head_rest.is_none() && self.from_head.len() < FROM_HEAD {
            let Some((chunk, _)) = self.tickets.pop_front() else {
                return;
            };
            if !self.have.contains(chunk) && self.pending.insert(chunk) {
                self.from_head.insert(chunk, now + HEAD_BOUND);
                self.outputs.push_back(Output::AskHead(chunk));
            }
        }
    }

    fn use_peer(&mut self, now: Duration, name: &Name) {
        let connected = self.in_use();
        let Some(link) = self.peers.get(name).map(|peer| peer.link) else {
            return;
        };
        let next = match link {
            Link::Away { until } if until <= now && connected < IN_USE => {
                self.outputs.push_back(Output::Connect(Arc::clone(name)));
                Link::Calling {
                    until: now + PEER_BOUND,
                }
            }
            Link::Pausing { until } if until > now => return,
            Link::Idle | Link::Pausing { .. } => self.next_question(now, name),
            _ => return,
        };
        if let Some(peer) = self.peers.get_mut(name) {
            peer.link = next;
        }
    }

    fn next_question(&mut self, now: Duration, name: &Name) -> Link {
        let peer = Arc::clone(name);
        match self.rarest_of(name) {
            Some(chunk) => {
                self.pending.insert(chunk);
                self.outputs.push_back(Output::AskPeer { peer, chunk });
                Link::Asked {
                    chunk,
                    until: now + PEER_BOUND,
                }
            }
            None => {
                self.outputs.push_back(Output::AskHave { peer, wait: WAIT });
                Link::Watched {
                    until: now + WAIT + PEER_BOUND,
                }
            }
        }
    }

    /// Of the chunks that the peer has and nobody was asked for, one that the fewest have; which of several, differs.
    fn rarest_of(&mut self, name: &str) -> Option<u32> {
        let peer = self.peers.get(name)?;
        let (mut best, mut equals) = (None, 0);
        for chunk in peer.have.without(&self.have, &self.pending) {
            let spread = self.spread.get(chunk as usize).copied().unwrap_or(u16::MAX);
            match best {
                Some((least, _)) if spread > least => {}
                Some((least, _)) if spread == least => {
                    equals += 1;
                    if self.random.below(equals) == 0 {
                        best = Some((spread, chunk));
                    }
                }
                _ => (best, equals) = (Some((spread, chunk)), 1),
            }
        }
        best.map(|(_, chunk)| chunk)
    }

    /// Nothing came for a while: the head may help, and a peer that has nothing makes room for another.
    fn starve(&mut self, now: Duration) {
        if self.starving || self.starves_at > now {
            return;
        }
        self.starving = true;
        self.wish_again = None;
        let connected = self
            .peers
            .values()
            .filter(|peer| peer.link.is_connected())
            .count();
        let useless = self
            .peers
            .iter()
            .filter(|(_, peer)| matches!(peer.link, Link::Watched { .. }));
        if connected >= PEERS
            && let Some(name) = useless
                .min_by_key(|(_, peer)| peer.gave)
                .map(|(name, _)| Arc::clone(name))
        {
            self.outputs.push_back(Output::Disconnect(Arc::clone(&name)));
            self.forget(&name);
        }
    }

    fn wish(&mut self, now: Duration) {
        if !self.head_up || self.wish_again.is_some_and(|at| at > now) {
            return;
        }
        // No deadline any more: whatever makes it possible brings us here again.
        self.wish_again = None;
        let open = self.tickets.len() + self.from_head.len();
        if open > self.batch / 2 || self.head_rest.is_some() {
            return;
        }
        let queued = self.tickets.iter().map(|(chunk, _)| *chunk);
        let using = self.from_head.keys().copied().chain(queued).collect();
        let lack = PEERS.saturating_sub(self.peers.len()) as u32;
        self.wish_again = Some(now + self.random.around(WISH_AGAIN));
        self.outputs.push_back(Output::Wish {
            tickets: TICKETS,
            peers: lack,
            starving: self.starving,
            using,
        });
    }

    pub(super) fn rest(&mut self, now: Duration, after: Option<Duration>) {
        self.counters.failed += 1;
        let doubled = FIRST_RETRY * (1 << self.head_failures.min(6));
        self.head_failures += 1;
        let pause = after.unwrap_or(doubled).min(LAST_RETRY);
        self.head_rest = Some(now + self.random.around(pause));
    }

    pub(super) fn head_was_wrong(&mut self, now: Duration, chunk: u32, error: ChunkError) {
        self.counters.wrong += 1;
        self.head_wrong += 1;
        if self.from_head.remove(&chunk).is_some() {
            self.pending.remove(chunk);
        }
        self.outputs.push_back(Output::WrongFromHead(error));
        let limit = if self.peers.is_empty() {
            HEAD_WRONG
        } else {
            HEAD_WRONG_BESIDE_PEERS
        };
        if self.head_wrong >= limit {
            self.head_wrong = 0;
            self.outputs.push_back(Output::BadHead(error));
        }
        self.rest(now, None);
    }

    /// Whether this is what the peer was asked for. A chunk that nobody asked for is not taken, however good.
    pub(super) fn peer_gave(&mut self, name: &str, chunk: u32, have: Option<&[u8]>) -> bool {
        let Some(peer) = self.peers.get_mut(name) else {
            return false;
        };
        let asked = matches!(peer.link, Link::Asked { chunk: asked, .. } if asked == chunk);
        if !asked {
            self.counters.wrong += 1;
            return false;
        }
        peer.link = Link::Idle;
        peer.failures = 0;
        peer.gave += 1;
        if let Some(have) = have {
            self.take_have(name, have);
        }
        true
    }

    /// Names it, and asks it for nothing more, ever.
    pub(super) fn lied(&mut self, name: &Name, error: ChunkError) {
        self.counters.wrong += 1;
        if !self.peers.contains_key(name) {
            return;
        }
        self.forget(name);
        self.bad.insert(Arc::clone(name));
        self.outputs.push_back(Output::Disconnect(Arc::clone(name)));
        self.outputs.push_back(Output::BadPeer {
            peer: Arc::clone(name),
            error,
        });
    }

    /// The chunk that it was asked for may be asked of others.
    pub(super) fn release(&mut self, name: &str) {
        if let Some(peer) = self.peers.get_mut(name)
            && let Link::Asked { chunk, .. } = peer.link
        {
            self.pending.remove(chunk);
            peer.link = Link::Idle;
        }
    }

    pub(super) fn lose(&mut self, now: Duration, name: &str) {
        self.release(name);
        self.counters.failed += 1;
        let Some(peer) = self.peers.get_mut(name) else {
            return;
        };
        peer.failures += 1;
        if peer.failures >= ATTEMPTS {
            self.forget(name);
            return;
        }
        let pause = FIRST_RETRY * (1 << peer.failures);
        peer.link = Link::Away {
            until: now + self.random.around(pause),
        };
        let none = Bitmap::none(self.have.chunks());
        let had = core::mem::replace(&mut peer.have, none.clone());
        self.count(&had, &none);
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.release(name);
        if let Some(peer) = self.peers.remove(name) {
            self.count(&peer.have, &Bitmap::none(self.have.chunks()));
        }
    }

    /// What does not fit the image is nobody's: the peer is taken to have nothing.
    pub(super) fn take_have(&mut self, name: &str, have: &[u8]) {
        let chunks = self.have.chunks();
        let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.link.is_connected()) else {
            return;
        };
        let new = Bitmap::decode(have, chunks).unwrap_or_else(|_| {
            self.counters.wrong += 1;
            Bitmap::none(chunks)
        });
        let old = core::mem::replace(&mut peer.have, new.clone());
        self.count(&old, &new);
    }

    fn count(&mut self, old: &Bitmap, new: &Bitmap) {
        for (chunk, come) in old.changes(new) {
            if let Some(spread) = self.spread.get_mut(chunk as usize) {
                *spread = spread.saturating_add_signed(if come { 1 } else { -1 });
            }
        }
    }
}
