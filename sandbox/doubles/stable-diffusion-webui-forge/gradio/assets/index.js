// TEST DOUBLE, never deploy: stands for gradio's front end
