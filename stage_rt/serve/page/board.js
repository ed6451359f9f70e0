// The photograph, and the mask that is drawn over it at the photograph's own size.

const COLOUR = [255, 45, 85];
const UNDONE = 30;

export class Board {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.mask = document.createElement("canvas");
    this.drawing = this.mask.getContext("2d", { willReadFrequently: true });
    this.tint = document.createElement("canvas");
    this.changed = changed;
    this.shape = "brush";
    this.size = 8;
    this.past = [];
    this.points = [];
    this.cursor = null;
    this.photo = this.shown = null;
    this.share = 1;
    this.outline = true;
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", () => this.up());
    canvas.addEventListener("pointercancel", () => this.up());
    canvas.addEventListener("dblclick", () => this.close());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.cursor = null; this.draw(); });
  }

  open(photo) {
    const { naturalWidth: width, naturalHeight: height } = photo;
    this.photo = photo;
    for (const each of [this.canvas, this.mask, this.tint]) { each.width = width; each.height = height; }
    this.past = [];
    this.points = [];
    this.show(null);
  }

  // A picture over the photograph, with or without the mask's tint.
  show(picture, outline = true) {
    this.shown = picture;
    this.outline = outline;
    this.draw();
  }

  get empty() {
    const { data } = this.drawing.getImageData(0, 0, this.mask.width, this.mask.height);
    for (let n = 3; n < data.length; n += 4) if (data[n] > 127) return false;
    return true;
  }

  // The mask as a PNG file, white on black, in base64.
  png() {
    const { width, height } = this.mask;
    const flat = document.createElement("canvas");
    flat.width = width;
    flat.height = height;
    const pixels = this.drawing.getImageData(0, 0, width, height);
    for (let n = 0; n < pixels.data.length; n += 4) {
      pixels.data.fill(pixels.data[n + 3] > 127 ? 255 : 0, n, n + 3);
      pixels.data[n + 3] = 255;
    }
    flat.getContext("2d").putImageData(pixels, 0, 0);
    return flat.toDataURL("image/png").split(",")[1];
  }

  // Take a mask, white on black, for what was drawn.
  take(image) {
    this.remember();
    const { width, height } = this.mask;
    this.drawing.globalCompositeOperation = "copy";
    this.drawing.drawImage(image, 0, 0, width, height);
    this.drawing.globalCompositeOperation = "source-over";
    const pixels = this.drawing.getImageData(0, 0, width, height);
    for (let n = 0; n < pixels.data.length; n += 4) pixels.data[n + 3] = pixels.data[n] > 127 ? 255 : 0;
    this.drawing.putImageData(pixels, 0, 0);
    this.done();
  }

  clear() {
    this.remember();
    this.drawing.clearRect(0, 0, this.mask.width, this.mask.height);
    this.points = [];
    this.done();
  }

  undo() {
    if (this.points.length) this.points.pop();
    else if (this.past.length) this.drawing.putImageData(this.past.pop(), 0, 0);
    this.done();
  }

  // End a polygon.
  close() {
    if (this.points.length > 2) {
      this.remember();
      this.area((path) => this.points.forEach(([x, y]) => path.lineTo(x, y)));
    }
    this.points = [];
    this.done();
  }

  choose(shape) {
    this.shape = shape;
    this.points = [];
    this.draw();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.canvas.width,
      ((event.clientY - box.top) / box.height) * this.canvas.height,
    ];
  }

  down(event) {
    if (!this.photo || event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = null;
    this.begin(this.place(event));
  }

  begin(at) {
    if (this.shown) this.show(null);
    if (this.shape === "polygon") {
      const [first] = this.points;
      if (this.points.length > 2 && Math.hypot(at[0] - first[0], at[1] - first[1]) < this.grip()) return this.close();
      this.points.push(at);
      return this.draw();
    }
    this.remember();
    this.last = this.from = at;
    if (this.shape !== "ellipse") this.stroke(at);
  }

  move(event) {
    if (!this.last) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const at = this.place(each);
      if (this.shape === "ellipse") this.ellipse(at);
      else this.stroke(at);
    }
  }

  up() {
    if (!this.last) return;
    this.last = this.from = null;
    this.done();
  }

  stroke(at) {
    const pen = this.drawing;
    pen.globalCompositeOperation = this.shape === "eraser" ? "destination-out" : "source-over";
    pen.strokeStyle = pen.fillStyle = "#fff";
    pen.lineWidth = this.size;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(...this.last);
    pen.lineTo(...at);
    pen.stroke();
    pen.globalCompositeOperation = "source-over";
    this.last = at;
    this.draw();
  }

  ellipse(at) {
    this.drawing.putImageData(this.past.at(-1), 0, 0);
    const [[x, y], [u, v]] = [this.from, at];
    this.area((path) => path.ellipse((x + u) / 2, (y + v) / 2, Math.abs(u - x) / 2, Math.abs(v - y) / 2, 0, 0, 2 * Math.PI));
    this.last = at;
    this.draw();
  }

  area(trace) {
    this.drawing.fillStyle = "#fff";
    this.drawing.beginPath();
    trace(this.drawing);
    this.drawing.fill();
  }

  // Arrow keys and Space draw as a pointer does.
  key(event) {
    const step = event.shiftKey ? 1 : Math.max(this.canvas.width / 64, 1);
    const way = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (!this.photo || (!way && event.key !== " ")) return;
    event.preventDefault();
    const { width, height } = this.canvas;
    this.cursor ??= [width / 2, height / 2];
    if (way) {
      const [x, y] = this.cursor;
      this.cursor = [Math.min(Math.max(x + way[0], 0), width), Math.min(Math.max(y + way[1], 0), height)];
    } else if (this.shape === "ellipse" && this.from) {
      this.ellipse(this.cursor);
      this.up();
    } else {
      this.begin(this.cursor);
      if (this.shape !== "ellipse") this.up();
    }
    this.draw();
  }

  // How near to a point is on it, in the photograph's pixels.
  grip() {
    return (12 * this.canvas.width) / (this.canvas.clientWidth || 1);
  }

  remember() {
    this.past.push(this.drawing.getImageData(0, 0, this.mask.width, this.mask.height));
    if (this.past.length > UNDONE) this.past.shift();
  }

  done() {
    this.draw();
    this.changed();
  }

  draw() {
    if (!this.photo) return;
    const { width, height } = this.canvas;
    const pen = this.context;
    pen.drawImage(this.photo, 0, 0);
    if (this.shown) {
      const edge = Math.round(width * this.share);
      pen.save();
      pen.beginPath();
      pen.rect(0, 0, edge, height);
      pen.clip();
      pen.drawImage(this.shown, 0, 0, width, height);
      pen.restore();
      if (this.share < 1) this.line([[edge, 0], [edge, height]], "#fff");
    }
    if (!this.shown || this.outline) this.tinted();
    if (this.points.length) this.line(this.points, `rgb(${COLOUR})`, true);
    if (this.cursor) {
      pen.beginPath();
      pen.arc(...this.cursor, Math.max(this.size / 2, this.grip() / 3), 0, 2 * Math.PI);
      pen.lineWidth = this.grip() / 6;
      pen.strokeStyle = "#fff";
      pen.stroke();
    }
  }

  tinted() {
    const { width, height } = this.canvas;
    const pen = this.tint.getContext("2d");
    pen.globalCompositeOperation = "copy";
    pen.drawImage(this.mask, 0, 0);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = `rgb(${COLOUR})`;
    pen.fillRect(0, 0, width, height);
    this.context.globalAlpha = this.shown ? 0.15 : 0.5;
    this.context.drawImage(this.tint, 0, 0);
    this.context.globalAlpha = 1;
  }

  line(points, colour, dots = false) {
    const pen = this.context;
    pen.beginPath();
    points.forEach(([x, y]) => pen.lineTo(x, y));
    pen.strokeStyle = pen.fillStyle = colour;
    pen.lineWidth = this.grip() / 6;
    pen.stroke();
    if (dots) {
      for (const [x, y] of points) {
        pen.beginPath();
        pen.arc(x, y, this.grip() / 3, 0, 2 * Math.PI);
        pen.fill();
      }
    }
  }
}
