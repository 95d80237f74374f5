//! What a promised root image means for the node's life: joining until it is mounted, home when it is refused.

use super::*;

impl Node {
    /// The promised root image is mounted.
    pub(crate) fn handle_root(&mut self) {
        self.mounted = true;
        if std::mem::take(&mut self.awaits_root) {
            self.refused = None;
            self.show_up();
        }
    }

    /// This PC does not run the promised root image. The head stays connected, so that it knows why; the PC goes home when nothing
    /// changes.
    pub(crate) fn handle_root_refused(&mut self, now: Duration, why: &str) {
        why.clone_into(&mut self.refused.get_or_insert((now, String::new())).1);
        self.say(why);
    }

    /// How far the root image is, for the person at the PC.
    pub(crate) fn handle_root_progress(&mut self, text: &str) {
        if self.awaits_root && matches!(self.state, State::Up { .. }) {
            self.say(text);
        }
    }

    /// Ready, if the root image is; still joining otherwise.
    pub(super) fn show_up(&mut self) {
        if !matches!(self.state, State::Up { .. }) {
            return;
        }
        if self.awaits_root {
            self.tell_fact("name", self.name.clone());
            return self.announce(NodeState::Joining);
        }
        self.status.clear();
        self.outputs
            .push_back(Output::Tell(FromAgent::Up(self.name.clone())));
        self.announce(NodeState::Up);
    }
}
