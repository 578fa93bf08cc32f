// What is recorded: the camera, or a drawing where there is none. The recording is a Blob in memory and nowhere else.

const duration = 1500; // ms
const canvas = document.getElementById('scene');
const video = document.getElementById('preview');
const pen = canvas.getContext('2d');
const still = matchMedia('(prefers-reduced-motion: reduce)');

// record returns a clip, and words about it.
export async function record(source) {
  const {camera, why} = source === 'camera' ? await openCamera() : {why: ''};
  if (!camera) return {clip: await recordDrawing(), words: `${why}Recorded a drawing.`};
  try {
    show(camera);
    await video.play();
    return {clip: await toClip(camera, () => pen.drawImage(video, 0, 0, canvas.width, canvas.height)), words: 'Recorded the camera.'};
  } finally {
    for (const track of camera.getTracks()) track.stop();
    show(null);
    draw(0);
  }
}

function show(camera) {
  video.srcObject = camera;
  video.hidden = !camera;
  canvas.hidden = Boolean(camera);
}

const noCamera = 'There is no camera. ';
const reasons = {NotAllowedError: 'The camera was not allowed. ', NotFoundError: noCamera};

// openCamera returns a stream, or why there is none.
async function openCamera() {
  if (!navigator.mediaDevices) return {why: 'Browsers open the camera for https and localhost only. '};
  const devices = await navigator.mediaDevices.enumerateDevices().catch(() => []);
  if (!devices.some(device => device.kind === 'videoinput')) return {why: noCamera};
  const button = document.getElementById('draw');
  button.hidden = false;
  let late = false;
  const asked = navigator.mediaDevices.getUserMedia({video: {facingMode: 'user', width: {ideal: 640}}}).then(camera => {
    if (late) for (const track of camera.getTracks()) track.stop();
    return {camera};
  }, error => ({why: reasons[error.name] ?? 'The camera does not work. '}));
  const drawing = new Promise(resolve => {
    button.onclick = () => resolve({why: ''});
  });
  const answer = await Promise.race([asked, drawing]);
  late = !answer.camera;
  button.hidden = true;
  return answer;
}

async function recordDrawing() {
  const began = performance.now();
  const paint = () => draw(performance.now() - began);
  const timer = setInterval(paint, 40);
  try {
    return await toClip(canvas.captureStream?.(25), paint);
  } finally {
    clearInterval(timer);
    draw(0);
  }
}

// toClip records a stream, or keeps frames of the canvas where the browser has no recorder. Paint puts a frame there.
async function toClip(stream, paint) {
  const clip = stream && window.MediaRecorder ? await recordStream(stream).catch(() => null) : null;
  return clip?.size ? clip : recordFrames(paint);
}

async function recordStream(stream) {
  const recorder = new MediaRecorder(stream);
  const parts = [];
  const stopped = new Promise((resolve, reject) => {
    recorder.ondataavailable = event => parts.push(event.data);
    recorder.onstop = resolve;
    recorder.onerror = reject;
  });
  recorder.start();
  await pause(duration);
  recorder.stop();
  await stopped;
  return new Blob(parts, {type: recorder.mimeType});
}

async function recordFrames(paint) {
  const frames = [];
  for (let at = 0; at < duration; at += 100) {
    paint();
    frames.push(await new Promise(resolve => canvas.toBlob(resolve, 'image/jpeg')));
    await pause(100);
  }
  return new Blob(frames);
}

const pause = ms => new Promise(resolve => setTimeout(resolve, ms));

// draw paints a face at a moment. For people who want less motion only a clock changes, so that no two recordings are alike.
function draw(ms) {
  const {width, height} = canvas;
  const sway = still.matches ? 0 : Math.sin(ms / 260) * 10;
  const sky = pen.createLinearGradient(0, 0, 0, height);
  sky.addColorStop(0, '#cfe0ff');
  sky.addColorStop(1, '#7fa6ee');
  pen.fillStyle = sky;
  pen.fillRect(0, 0, width, height);
  pen.fillStyle = '#2b4a86';
  oval(160 + sway / 2, 330, 110, 90); // shoulders
  pen.fillStyle = '#5a3a26';
  oval(160 + sway, 140, 78, 92); // hair
  pen.fillStyle = '#f0c7a3';
  oval(160 + sway, 155, 64, 82); // face
  pen.fillStyle = '#23303f';
  const open = !still.matches && ms % 1100 > 950 ? 1 : 7; // a blink
  oval(136 + sway * 1.3, 142, 7, open);
  oval(184 + sway * 1.3, 142, 7, open);
  pen.strokeStyle = '#a3503c';
  pen.lineWidth = 5;
  pen.lineCap = 'round';
  pen.beginPath();
  pen.arc(160 + sway * 1.2, 178, 24, 0.25, Math.PI - 0.25);
  pen.stroke();
  if (ms) clock(ms);
}

function clock(ms) {
  pen.fillStyle = '#10203d';
  pen.fillRect(10, 10, 108, 30);
  pen.fillStyle = '#ff6b5e';
  oval(26, 25, 6, 6);
  pen.fillStyle = '#fff';
  pen.font = '18px ui-monospace, monospace';
  pen.fillText(`${(ms / 1000).toFixed(2)} s`, 42, 31);
}

function oval(x, y, across, down) {
  pen.beginPath();
  pen.ellipse(x, y, across, down, 0, 0, 2 * Math.PI);
  pen.fill();
}

draw(0);
