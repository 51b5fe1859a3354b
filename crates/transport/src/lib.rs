//! Links between nodes: WebRTC natively, WebRTC through the page in browsers, memory in tests.
